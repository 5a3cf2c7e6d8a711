"""What opens doors: keys of known services, private keys, tokens, passwords, addresses with a login."""

import base64
import json
import math
import re
from collections import Counter

from tunesmith.data.personal.pattern import Pattern, Span, before, whole


def entropy(text: str) -> float:
    """Return the Shannon entropy of a text's characters, in bits each."""
    n = len(text)
    return -sum(c / n * math.log2(c / n) for c in Counter(text).values()) if n else 0.0


_PLACEHOLDER = re.compile(
    r"your|example|sample|placeholder|changeme|change_me|redacted|dummy|insert|enter|replace|todo|hidden|undefined|"
    r"null|none\b|true\b|false\b|required|"
    r"optional|string\b|password\b|passwd\b|secret\b|^my_?|^the\b|^test$|^foo|^bar$|x{3,}|\*{3,}|\.{3,}|…|•{2,}|<|>|"
    r"^\$|\$\{|\$\(|\{\{|%s|%\(|\{\w*\}|"
    r"env\b|environ|getenv|process\.|config\.|self\.|args\.|request\.|input\(|getpass|\(\)|\[",
    re.IGNORECASE,
)


# What names a thing rather than opens a door: hashes, files, and the objects of an API ("call_", "chatcmpl-").
_NO_KEY = re.compile(
    r"(?:sha\d*|md5|hash|digest|checksum|img|image|file|tmp|temp|id|u?uid|guid|video|photo|audio|test|commit|build|cache|call|tool\w*|chatcmpl|"
    r"cmpl|msg|message|run|thread|resp|asst|req|request|user|cus|sub|evt|event|step|batch|fc|rs|org|proj|session|trace|span|node|item|obj|"
    r"page|row|doc|chunk|part|version|node|task|job|order|pi|ch|in|price|prod|acct|txn?|ft|vs|snap|vol|ami|subnet|vpc|sg)[_-]",
    re.IGNORECASE,
)
_ALGORITHM = re.compile(
    r"(?:sha|md|base|oauth|argon|pbkdf|scrypt|bcrypt|utf|html|web|windows|office|python|http)\w{0,6}$|v?\d+[.\d]*$|\d+[-\w]*(?:char|digit|letter)",
    re.IGNORECASE,
)


def _key(match: re.Match[str]) -> Span | None:
    """Random letters have digits or both cases; words joined by hyphens do not."""
    value = match[0][match[0].find("-") + 1 :] if "-" in match[0][:8] else match[0][4:]
    mixed = any(c.isdigit() for c in value) or (not value.islower() and not value.isupper())
    return (
        match.span()
        if mixed and entropy(value) >= 3.0 and not re.search(r"x{6,}|\*{3}|your|0{10}", value, re.IGNORECASE)
        else None
    )


def _jwt(match: re.Match[str]) -> Span | None:
    """Three parts, the first of which is base64url of a JSON object that names an algorithm (RFC 7515)."""
    head = match[0].split(".", 1)[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return None
    return match.span() if isinstance(header, dict) and "alg" in header else None


def _assigned(match: re.Match[str]) -> Span | None:
    """The value of `api_key = ...`: long, with digits among its letters, of high entropy, and no name or expression."""
    value = match["value"]
    if (
        _PLACEHOLDER.search(value)
        or len(value) < 12
        or not any(c.isdigit() for c in value)
        or not any(c.isalpha() for c in value)
    ):
        return None
    return match.span("value") if entropy(value) >= 3.2 else None


def _prefixed(match: re.Match[str]) -> Span | None:
    """A random tail behind a service's prefix: letters and digits mixed, and no file's or hash's name."""
    tail = max(re.split("[_-]", match[0]), key=len)
    named = _NO_KEY.match(match[0])
    mixed = sum(c.isdigit() for c in tail) >= 4 and any(c.isalpha() for c in tail)
    mixed = mixed and ("_" in match[0] or (tail != tail.lower() and tail != tail.upper()))
    return match.span() if mixed and not named and entropy(tail) >= 3.4 else None


def _discord(match: re.Match[str]) -> Span | None:
    """A bot's token of Discord: its first part is base64 of the bot's number."""
    head = match[0].split(".", 1)[0]
    try:
        number = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
    except ValueError:
        return None
    return match.span() if number.isdigit() else None


def _called(match: re.Match[str]) -> Span | None:
    """What stands right behind "my key": random, of both cases and digits, or a long hexadecimal number."""
    value = match["value"].rstrip(".,;")
    cased = value != value.lower() and value != value.upper() and sum(c.isdigit() for c in value) >= 3
    hexed = len(value) >= 32 and re.fullmatch(r"[0-9a-f]+", value)
    right = (cased or hexed) and entropy(value) >= 3.4 and not _PLACEHOLDER.search(value)
    return (match.start("value"), match.start("value") + len(value)) if right else None


def _said(match: re.Match[str]) -> Span | None:
    """A password that stands behind the word alone, or behind an option: letters and digits, and no algorithm or version."""
    value = match["value"].rstrip(".,;?)")
    if _PLACEHOLDER.search(value) or _ALGORITHM.match(value) or len(value) < 6 or "=" in value:
        return None
    mixed = any(c.isalpha() for c in value) and any(c.isdigit() for c in value)
    return (match.start("value"), match.start("value") + len(value)) if mixed else None


def _password(match: re.Match[str]) -> Span | None:
    """A password need not be long or random; a word, though, may be the name of a variable or prose."""
    value = match["value"]
    end = match.end("value")
    if _PLACEHOLDER.search(value) or not 4 <= len(value) <= 128:
        return None
    quoted = match["quote"] != ""
    if not quoted:
        trimmed = value.rstrip(".,;!?)" if match["verb"] else ".,;?)")
        end, value = end - (len(value) - len(trimmed)), trimmed
    letters, numbers = any(c.isalpha() for c in value), any(c.isdigit() for c in value)
    symbols = any(not c.isalnum() and c not in "_-.'" for c in value)
    strong = (letters and (numbers or symbols)) or (numbers and len(value) >= 6)
    strong = strong or (len(value) >= 16 and value.isalpha() and match["verb"] is None)  # words run together
    called = match.string[end : end + 1] in "([" if end < len(match.string) and not quoted else False
    code = not quoted and re.fullmatch(r"[a-zA-Z_]+(?:\.\w+)+|\w+\(.*|len\(.*", value)
    said = (
        quoted and match["verb"] is None and len(value) >= 6 and letters and " " not in value and entropy(value) >= 2.0
    )
    return (match.start("value"), end) if (strong or said) and not called and not code and len(value) >= 4 else None


def _login(match: re.Match[str]) -> Span | None:
    user, password = match["user"].lower(), match["password"].lower()
    generic = {"user", "username", "usr", "login", "name", ""}
    if (
        _PLACEHOLDER.search(password)
        or password in ("pass", "pwd", "passwd", "pw")
        or (user in generic and password in generic)
    ):
        return None
    return match.span("value")


def _basic(match: re.Match[str]) -> Span | None:
    """HTTP's basic authentication: base64 of user:password (RFC 7617); behind its header anything as long and random."""
    if before(match, _HEADER, 30) and _assigned(match) and len(match["value"]) >= 20:
        return match.span("value")
    try:
        said = base64.b64decode(match["value"], validate=True).decode()
    except ValueError:
        return None
    return match.span("value") if ":" in said and said.isprintable() else None


_HEADER = re.compile(r"authorization[\"']?\s?[:=]\s?[\"']?Basic $", re.IGNORECASE)
_ASSIGN = r"[\"'`]?\]?\s{0,3}(?::=|=>|==?|:|\bis\b|\bare\b)\s{0,3}"
_WORD = r"(?<![a-zA-Z])"


_PASSWORD_WORDS = (
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "passwort",
    "kennwort",
    "contraseña",
    "passe",
    "pass",
)


def _token(kind: str, pattern: str, *needs: str) -> Pattern:
    return Pattern(kind, re.compile(rf"(?<![\w-]){pattern}(?![\w-])"), _key, "long", needs=needs)


PATTERNS = (
    Pattern("private_key", re.compile(
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:(?!-----)[\s\S]){0,20000}(?:-----END (?:[A-Z0-9]+ )"
        r"*PRIVATE KEY(?: BLOCK)?-----)?"
    ), lambda m: m.span() if re.search(r"[A-Za-z0-9+/]{20}", m[0]) else None, "long", needs=("private key",)),
    Pattern("jwt", re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{4,}\.[\w-]*"), _jwt, "long", needs=(".eyj",)),
    Pattern("login", re.compile(
        r"(?<![a-zA-Z])[a-z][a-z0-9+.-]{1,20}://(?P<value>(?P<user>[^\s:/@\"'<>]{0,64})"
        r":(?P<password>[^\s@/\"'<>]{2,128}))@", re.IGNORECASE
    ), _login, needs=("://",)),
    Pattern("aws_key", re.compile(r"(?<!\w)(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?!\w)"), whole, "long", needs=("akia",
    "asia", "abia", "acca")),
    Pattern("aws_key", re.compile(
        r"(?:aws|secret)[\w ]{0,24}key(?:_id)?" + _ASSIGN + r"[\"'`]?(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        re.IGNORECASE
    ), lambda m: whole(m) if entropy(m["value"]) > 3.5 else None, "long", ("aws", "secret")),
    Pattern("login", re.compile(r"\bBasic (?P<value>[A-Za-z0-9+/]{8,400}={0,2})(?![\w+/=])"), _basic, words=("basic",)),
    _token("github_token", r"(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255})", "ghp_", "gho_", "ghu_", "ghs_",
    "ghr_", "github_pat_"),
    _token("gitlab_token", r"gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w-]{20,}", "glpat-", "gldt-", "glrt-", "glcbt-",
    "glptt-", "glft-", "glsoat-"),
    _token("slack_token", r"xox[abeoprs]-[\w-]{10,}", "xox"),
    Pattern("slack_token", re.compile(r"hooks\.slack\.com/services/(?P<value>T\w{6,}/B\w{6,}/\w{16,})"), gate="long",
    needs=("hooks.slack",)),
    _token("stripe_key", r"(?:[sr]k_(?:live|test)_|whsec_)[A-Za-z0-9]{16,}", "k_live_", "k_test_", "whsec_"),
    _token("anthropic_key", r"sk-ant-[\w-]{20,}", "sk-ant-"),
    _token("openai_key", r"sk-(?!ant-)(?:proj-|svcacct-|admin-|None-|or-v1-)?[\w-]{20,}", "sk-"),
    _token("huggingface_token", r"(?:hf|api_org)_[A-Za-z0-9]{30,}", "hf_", "api_org_"),
    _token("google_key", r"(?:AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,})", "aiza", "ya29.", "gocspx-"),
    _token("service_token", r"(?:npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{22}\.[\w-]{43}|"
                            r"do[opr]_v1_[0-9a-f]{64}|shpat_[0-9a-f]{32}|(?:AC|SK)[0-9a-f]{32}|"
           r"\d{8,10}:AA[\w-]{33}|gsk_\w{40,}|xai-\w{40,}|r8_\w{30,}|key-[0-9a-f]{32}|ntn_\w{40,}|lin_api_\w{32,}|"
           r"dckr_pat_[\w-]{20,})",
           "npm_", "pypi-", "sg.", "_v1_", "shpat_", "twilio", "account_sid", "bot", ":aa", "gsk_", "xai-", "r8_",
           "key-", "ntn_", "lin_api_", "dckr_pat_"),
    _token("service_token", r"(?:dapi[0-9a-f]{32}|sq0[a-z]{3}-[\w-]{20,}|fig[dou]_[\w-]{30,}|hv[sbr]\.[\w-]{20,}|NRAK-[A-Z0-9]{27}|"
           r"ATATT3[\w-]{60,}(?:=[0-9A-F]{8})?|AGE-SECRET-KEY-1[A-Z0-9]{58}|pplx-\w{32,}|dp\.[a-z]{2,5}\.\w{40,}|"
           r"pscale_[a-z]+_[\w.-]{32,}|EAA[A-Za-z0-9]{60,}|pat[A-Za-z0-9]{14}\.[0-9a-f]{64}|sl\.[\w-]{60,}|"
           r"pat-[a-z]{2}\d-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?:FlyV1 )?fm\d_[\w+/,-]{40,}={0,2}|"
           r"[sp]k\.eyJ[\w-]{20,}\.[\w-]{20,}|PMAK-[0-9a-f]{24}-[0-9a-f]{34})",
           "dapi", "sq0", "figd_", "figo_", "figu_", "hvs.", "hvb.", "hvr.", "nrak-", "atatt3", "age-secret-key-", "pplx-", "dp.",
           "pscale_", "eaa", "pat", "sl.", "fm1_", "fm2_", "k.eyj", "pmak-"),
    Pattern("service_token", re.compile(r"[AS](?<![\w-].)[CK][0-9a-f]{32}(?![\w-])"), _key, "long"),
    Pattern("service_token", re.compile(r"[MNO](?<![\w.-].)[\w-]{21,27}\.[\w-]{6}\.[\w-]{27,40}(?![\w-])"), _discord, "long"),
    Pattern("service_token", re.compile(r"(?<![\w./-])[A-Za-z][A-Za-z0-9]{1,11}(?:_[a-z]{2,8}){0,2}[_-]"
            r"[A-Za-z0-9]{32,200}(?:_[0-9a-f]{8,10})?(?![\w-])"),
            _prefixed, "long", needs=("_", "-")),
    Pattern("api_key", re.compile(r"\b(?:[Kk]ey|[Tt]oken|[Ss]ecret)[\"'`]? [\"'`]?"
                                  r"(?P<value>[\w+/.~%-]{24,200}={0,2})(?![\w(\[])"), _called, "long",
            ("key", "token", "secret")),
    Pattern("api_key", re.compile(r"\bCookie: ?[\w.-]{1,40}="
                                  r"(?P<value>[\w%+/.~-]{16,400}={0,2})", re.IGNORECASE), _assigned, "long", ("cookie",)),
    Pattern("login", re.compile(r"\bcurl\b[^\n|;]{0,200}? (?:-u|--user)[ =]?[\"']?"
            r"(?P<value>(?P<user>[^\s:\"'@]{1,64}):(?P<password>[^\s\"']{2,128}))"),
            _login, words=("curl",)),
    Pattern("password", re.compile(r"\b(?:mysql\w*|mariadb|mongo\w*)\b[^\n|;]{0,60}? -p(?P<value>[^\s'\"]{6,64})"), _said,
            words=("mysql", "mysqldump", "mysqladmin", "mariadb", "mongo", "mongosh", "mongodump")),
    Pattern("api_key", re.compile(
        _WORD + r"(?:api[_ -]?key|private[_ -]?key|session[_ -]?id|phpsessid|jsessionid|"
                r"secret[_ -]?key|access[_ -]?key|client[_ -]?secret|auth[_ -]?token|access[_ "
                r"-]?token|refresh[_ -]?token|bearer[_ -]?token|"
        r"api[_ -]?token|private[_ -]?token|app[_ -]?secret|signing[_ -]?key|encryption[_ -]?key|accountkey|"
        r"sharedaccesskey|secret|token|apikey)" + _ASSIGN +
        r"[\"'`]?(?P<value>[\w+/.~-]{12,200}={0,2})(?![\w(\[])", re.IGNORECASE
    ), _assigned, words=("key", "secret", "token", "apikey", "secretkey", "accesstoken", "clientsecret", "authtoken",
    "accountkey", "sharedaccesskey", "appsecret", "apitoken",
    "session", "sessionid", "phpsessid", "jsessionid"), needs=("=", ":", " is ", " are ")),
    Pattern("api_key", re.compile(r"\bBearer (?P<value>[\w+/.~-]{20,400}={0,2})"), _assigned, "long", ("bearer",)),
    Pattern("password", re.compile(
        _WORD + r"(?:password|passwd|passphrase|passcode|pwd|passwort|kennwort|contraseña|mot de passe|pass(?=[\"' ]{0,2}[=:]))"
                r"(?:[\"'`]?\]?\s{0,3}(?::=|=>|==?|:)\s{0,3}|"
        r" (?P<verb>is|was|ist|es|est):? )(?:(?P<quote>[\"'`])(?P<value>[^\"'`\n]{4,128})(?=[\"'`]))", re.IGNORECASE
    ), _password, words=_PASSWORD_WORDS),
    Pattern("password", re.compile(
        _WORD + r"(?:password|passwd|passphrase|passcode|pwd|passwort|kennwort|contraseña|mot de passe|pass(?=[\"' ]{0,2}[=:]))"
                r"(?:[\"'`]?\]?\s{0,3}(?::=|=>|==?|:)\s{0,3}|"
        r" (?P<verb>is|was|ist|es|est):? )(?P<quote>)(?P<value>(?:[^\s\"'`;,<>&()\[\]{}]|&(?!\w+=)){4,128})",
        re.IGNORECASE
    ), _password, words=_PASSWORD_WORDS),
    Pattern("password", re.compile(
        _WORD + r"(?:password|passwd|passphrase|passcode|passwort|kennwort|contraseña) [\"'`]?(?P<value>[^\s\"'`;,<>&()\[\]{}]{6,64})",
        re.IGNORECASE
    ), _said, words=_PASSWORD_WORDS),
)  # fmt: skip
