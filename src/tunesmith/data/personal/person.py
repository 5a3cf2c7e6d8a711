"""What tells of a person in words: names after clear context, dates of birth, postal addresses."""

import re

from tunesmith.data import lexicon
from tunesmith.data.personal.pattern import Pattern, Span, before, digits

_WORD = (
    r"(?:[A-Z]\.|(?:Mr|Mrs|Ms|Mx|Dr|Prof|Sr|Sra|Mme|Jr)\.|[A-ZÀ-ÖØ-ÞŁŚŻ](?:[a-zß-öø-ÿąćęłńóśźż]+|['’](?=[A-Z]))"
    r"(?:['’-]?[A-ZÀ-ÖØ-Þ]?[a-zß-öø-ÿąćęłńóśźż]+){0,2}|[A-ZÀ-ÖØ-Þ]{2,20}(?![\w]))"
)
_NAME = rf"(?P<value>{_WORD}(?: (?:(?:de|la|del|van|von|der|den|da|dos|di|bin|al) ){{0,2}}{_WORD}){{0,3}})"
# Who is addressed or calls itself so without being a person.
_NOBODY = lexicon.words("personal", "nobody")
# The sixty most frequent Chinese surnames.
_SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜"
# A model that says what it is called: nobody's name, and what identity data is there to teach.
_MODEL = re.compile(
    r"[^.\n]{0,60}\b(?:AI|A\.I\.|assistant|chat ?bot|bot|language model|LLM|artificial intelligence|robot)\b|"
    r"[^。\n]{0,30}(?:助手|模型|机器人)",
)
_TITLE = re.compile(r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Herr|Frau|Sr|Sra|Señora?|Monsieur|Madame|Mme|M)\.? ")


def _name(match: re.Match[str]) -> Span | None:
    """A title is no part of the name; a sentence's next words are not either."""
    start, end = match.span("value")
    title = _TITLE.match(match.string, start, end)
    start = title.end() if title and title.end() < end else start
    value = match.string[start:end]
    words = [w.strip(".").lower() for w in value.split()]
    if not value or len(words[0]) < 2 or _NOBODY & set(words) or _invented(value) or _MODEL.match(match.string, end):
        return None
    return None if re.search(r"(?:Bot|GPT|AI)\b", value) else (start, end)


INVENTED = re.compile(r"(?:Bel|Tav|Orm|Kez|Dul|Vam|Nir|Gof|Pax|Rud|Syl|Wex|Hov|Jad|Lum|Zet)(?:a|e|i|o|u|y|ai|or|ur|"
                      r"il|on|ep|um|ax|ob|ek)"
                      r"(?:quil|thar|vex|zorn|drel|phor|gax|wyn|plon|skar|mund|trix|bolt|fenk|glum|nax)",
                      re.IGNORECASE)  # fmt: skip
"""The words that pseudonyms of names are made of (16 x 16 x 16), which are nobody's."""


def _invented(text: str) -> bool:
    return all(INVENTED.fullmatch(w.strip(".")) or w.islower() for w in text.split())


_MONTH = (
    r"(?:jan(?:uary|uar|vier)?|ene(?:ro)?|feb(?:ruary|ruar|rero)?|f[eé]v(?:rier)?|mar(?:ch|zo|s)?|m[äa]rz|apr(?:il)?|"
    r"abr(?:il)?|avr(?:il)?|"
    r"ma[iy]o?|june?|juni|junio|juin|july?|juli|julio|juillet|aug(?:ust)?|agosto|ao[uû]t|sep(?:t(?:ember|iembre|"
    r"embre)?)?|oct(?:ober|ubre|obre)?|"
    r"okt(?:ober)?|nov(?:ember|iembre|embre)?|dec(?:ember)?|dez(?:ember)?|dic(?:iembre)?|d[eé]c(?:embre)?)\.?"
)
_DATE = (
    rf"(?P<value>\d{{1,2}}(?:st|nd|rd|th|er)?\.? (?:de |of )?{_MONTH},? (?:de |del )?\d{{4}}|{_MONTH} \d{{1,2}}(?:st|"
    rf"nd|rd|th)?,? \d{{4}}|"
    r"\d{1,2}[./-] ?\d{1,2}[./-] ?(?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2})(?!\w|[./-]\d)"
)


def _birth(match: re.Match[str]) -> Span | None:
    years = re.findall(r"\d{4}", match["value"])
    return None if "1900" in years or (years and not 1901 <= int(years[0]) <= 2029) else match.span("value")


_AT = re.compile(
    r"(?:\b(?:address|lives?|living|lived|located|reside[sd]?|residing|resident|home|house|ship(?:ped)?|deliver(?:y|"
    r"ed)?|send|mail|moved|office)\b[^.\n]{0,25}|^|\n|: ?)$",
    re.IGNORECASE,
)
_IN = re.compile(r"\b(?:in|since|of|by|until|from|about|over|around|than|least|most|nearly|almost)\s$", re.IGNORECASE)
_SURE = re.compile(
    r"\b(?:street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|parkway|pkwy|highway|hwy)\b\.?", re.IGNORECASE
)


def _address(match: re.Match[str]) -> Span | None:
    """Words that also mean other things (Drive, Place, Court) need the rest of an address or the word before it."""
    text = match[0]
    number = digits(text.split(" ", 1)[0])
    if INVENTED.search(text) or (len(number) == 4 and 1900 <= int(number) <= 2029 and before(match, _IN, 8)):
        return None
    if not (_SURE.search(match["way"]) or match["rest"] or before(match, _AT, 45)):
        return None
    return match.span()


def _european(match: re.Match[str]) -> Span | None:
    return None if INVENTED.search(match[0]) else match.span()


_WAYS = (
    "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Terrace|Square|Parkway|Pkwy|"
    "Highway|Hwy|Close|Crescent|"
    "Gardens|Grove|Circle|Trail|Mews"
)
_STREET = re.compile(
    r"\d(?<![\w.,$€£#/-].)\d{0,4}[A-Za-z]? (?:(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)\.? )?"
    r"(?:(?:[A-Z][a-zß-öø-ÿ'’]+|\d{1,3}(?:st|nd|rd|th)|[A-Z]\.|Martin Luther King Jr\.?) ){1,3}"
    rf"(?P<way>(?:{_WAYS})\b)(?:\.(?=,| (?:[a-z#\d]|Apt|Suite|Ste|Unit|[NSEW])))?(?: (?:N|S|E|W|NE|NW|SE|SW)\b)?"
    r"(?P<rest>(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|#)\.? ?#?\w{1,5})?"
    r"(?:, [A-Z][\w.'’-]+(?: [A-Z][\w.'’-]+){0,2}(?:,? [A-Z]{2}(?: \d{5}(?:-\d{4})?)|,? [A-Z]{1,2}\d[A-Z\d]? "
    r"?\d[A-Z]{2}))?)(?!\w)"
)  # fmt: skip
_TOWN = r"(?:,? \d{5} [A-ZÄÖÜÉ][\w-]+(?: (?:am|an der|de|del|la) [A-Z][\w-]+)?)?"
_GREET = r"(?:Dear|Hi|Hello|Hey|Liebe|Lieber|Sehr geehrte[r]?|Estimad[oa]|Querid[oa]|Hola|Chère?|Bonjour)"
PATTERNS = (
    Pattern("address", _STREET, _address, "digit", words=tuple(w.lower() for w in _WAYS.split("|"))),
    Pattern(
        "address",
        re.compile(r"(?<!\w)(?:[A-ZÄÖÜ][a-zäöüß]+(?:-[A-ZÄÖÜ][a-zäöüß]+)*-?(?:[Ss]tra(?:ß|ss)e|[Ss]tr\.|weg|platz|"
                   r"allee|gasse)|[A-ZÄÖÜ][a-zäöüß]+(?:er|en)? (?:Stra(?:ß|ss)e|Str\.|Weg|Platz|Allee)) \d{1,4} "
                   r"?[a-z]?(?!\w)" + _TOWN),
        _european,
        "digit",
        needs=("straße", "strasse", "str.", "weg ", "platz ", "allee ", "gasse "),
    ),
    Pattern(
        "address",
        re.compile(r"(?<![\w.,])\d{1,4}(?: bis| ter)?,? (?:rue|avenue|boulevard|place|chemin|impasse|allée|quai) "
                   r"(?:(?:de la|de l['’]|des|du|de|d['’]) ?)?[A-ZÉÈÀ][\w'’-]+(?: [A-ZÉÈÀ][\w'’-]+){0,2}" + _TOWN),
        _european,
        "digit",
        words=("rue", "avenue", "boulevard", "place", "chemin", "impasse", "allée", "quai"),
    ),
    Pattern(
        "address",
        re.compile(r"(?<!\w)(?:Calle|C/|Avenida|Avda\.?|Plaza|Paseo) ?(?:(?:de la|de los|del|de) )"
                   r"?[A-ZÁÉÍÓÚÑ][\w]+(?: (?:(?:de|del|la) )?[A-ZÁÉÍÓÚÑ][\w]+){0,2},? (?:n[º°úu.]\w* ?)?\d{1,4}(?!\w)" + _TOWN),
        _european,
        "digit",
        words=("calle", "c", "avenida", "avda", "plaza", "paseo"),
    ),
    Pattern(
        "birth_date",
        re.compile(
            r"(?:\b(?:date[ _]of[ _]birth|birth[ _-]?date|dob|patient(?: was)? born(?: on)?|(?<![^\n])geboren am|"
            r"d\.o\.b\.|birthday(?: is)?|i was born(?: on)?|geburtsdatum|ich "
            r"(?:bin|wurde) am|fecha de nacimiento|nac[ií] el|date de naissance|"
            r"je suis née? le))(?: is| ist| es| est| was|[\s:=*_\"']){0,4}" + _DATE,
            re.IGNORECASE,
        ),
        _birth,
        "digit",
        words=("patient", "geboren", "birth", "birthdate", "birthday", "dob", "o", "born", "geburtsdatum", "ich", "nacimiento", "nací",
        "naci", "naissance", "né", "née"),
    ),
    Pattern(
        "name",
        re.compile(
            r"(?:\b[Mm]y (?:full |first |last |real )?name(?: is|['’]s|:)|\bI am called|\b[Tt]his is (?=[A-Z][a-z]+ "
            r"[A-Z][a-z]+ (?:calling|speaking|from|writing))|"
            r"\b[Mm]ein Name ist|\b[Ii]ch hei(?:ß|ss)e|\b[Mm]e llamo|\b[Mm]i nombre es|\b[Jj]e m['’]appelle|\b[Mm]on "
            r"nom est|"
            r"\b(?:[Ff]ull|[Ff]irst|[Ll]ast|[Pp]atient|[Cc]ustomer|[Cc]lient|[Cc]ontact|[Ee]mployee|[Cc]ardholder|"
            r"[Aa]ccount [Hh]older|[Ss]tudent)(?:['’]s)?[ _][Nn]ame(?: is)?[\"']?\s?[:=]?) ?[\"'*]{0,2}"
            + _NAME
        ),
        _name,
        words=("name", "called", "calling", "speaking", "writing", "from", "heiße", "heisse", "llamo", "nombre",
        "appelle", "nom"),
        needs=("my ", " name", "_name", "i am called", "this is ", "mein name", "ich hei", "me llamo", "mi nombre",
        "appelle", "mon nom"),
    ),
    Pattern("name", re.compile(rf"(?m)(?:^|[\"“]|: ){_GREET} {_NAME}(?=[,:!\n]|$)"), _name,
            words=("dear", "hi", "hello", "hey", "liebe", "lieber", "geehrte", "geehrter", "estimado", "estimada",
            "querido", "querida", "hola", "cher",
                   "chère", "bonjour")),
    Pattern(
        "name",
        re.compile(
            r"(?m)(?:(?:[Ss]incerely|[Rr]egards|Mit freundlichen Gr(?:ü|ue)(?:ß|ss)en)(?:[,.]? ?\n\s{0,3}|, )|"
            r"(?:[Ww]ishes|Yours(?: truly| faithfully)?|Respectfully|"
            r"Warmly|Cheers|Thanks|Thank you|Best|Love|Viele Gr(?:ü|ue)(?:ß|ss)e|Atentamente|Saludos|Un saludo|"
            r"Cordialement|Bien à vous|Signed)[,.]? ?\n\s{0,3}|Signed, )"
            + _NAME + r"(?=[ ]{0,3}(?:$|\n|,))"
        ),
        _name,
        words=("sincerely", "regards", "wishes", "yours", "respectfully", "warmly", "cheers", "thanks", "thank",
        "best", "love", "grüßen", "grüße",
               "gruessen", "gruesse", "grüssen", "atentamente", "saludos", "saludo", "cordialement", "vous", "signed",
               "faithfully"),
        needs=("sincerely", "regards", "signed, ", "\n"),
    ),
    Pattern(
        "name",
        re.compile(
            rf"(?m)(?:\bI(?: am|['’]m) (?=[A-Z][\w'’-]+ [A-Z][\w'’-]+(?:[,.!\n]| (?:and|from|with)\b|$))|"
            rf"^[ \t*-]{{0,4}}(?:Name|Patient|Customer|Client|Employee|Applicant|Signed|Attn|Contact(?: [Pp]erson)?|"
            rf"Ansprechpartner(?:in)?|Kunde|Nombre|Nom)\*{{0,2}}:\*{{0,2}} "
            rf"(?=(?:[A-Z][\w'’.-]+ ){{1,2}}[A-Z][\w'’-]+[ \t]{{0,3}}(?:$|,))){_NAME}"
        ),
        _name,
        words=("i", "name", "patient", "customer", "client", "employee", "applicant", "signed", "attn", "contact",
        "ansprechpartner", "ansprechpartnerin", "kunde", "nombre", "nom"),
        needs=("i am ", "i'm ", "i’m ", "name:", "patient:", "customer:", "client:", "employee:", "applicant:",
        "name**:", "name:**", "signed:", "attn:", "contact:", "person:", "ansprechpartner", "kunde:", "nombre:", "nom:"),
    ),
    Pattern(
        "name",
        re.compile(rf"(?:我叫|我的名字[是叫]|姓名[:：] ?)(?P<value>[{_SURNAMES}][\u4e00-\u9fff]{{1,2}})(?![\u4e00-\u9fff])"),
        needs=("我叫", "我的名字", "姓名"),
    ),
)  # fmt: skip
