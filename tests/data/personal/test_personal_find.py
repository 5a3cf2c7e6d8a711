"""Every kind of personal data: what is found, with its ends, and what only looks like it."""

import pytest
from labelled import labelled

from tunesmith.data.personal import KINDS, PATTERNS, find
from tunesmith.data.personal.finance import base58check, bech32, luhn, mod97
from tunesmith.data.personal.identity import dni_letter, nhs_check, nir_key, steuer_check
from tunesmith.data.personal.secrets import entropy

# In each text what stands between « and » is to be found, and nothing else.
FOUND = {
    "email": ["write to «jo.b+x@mail.acme.co.uk».", "<«max_m@web.de»>", "«jo.b at acme dot com»",
    "reach «kim [at] acme [dot] org» now",
    "«jo@example.com»"],
    "phone": [
        "call «555-123-4567»", "«(415) 867-5309»", "«+1 415 867 5309»", "«+44 20 7946 0958»", "«+49 (0)30 901820»",
        "«0170 1234567»",
        "«01 42 68 53 00»", "tel: «612 345 678»", "my number: call me at «555-0199»", "0 or «07700 900123», please",
        "«+34 612 345 678»", "Handy: «01701234567»",
    ],
    "card": ["«4111 1111 1111 1111»", "pan=«5555555555554444»,", "«3782 822463 10005»", "«6011-1111-1111-1117»"],
    "iban": ["«DE89 3704 0044 0532 0130 00» BANK", "«GB29NWBK60161331926819».", "«NL91ABNA0417164300»"],
    "bank_account": ["account number: «1234567890»", "sort code «12-34-56»", "Kontonummer «532013000»"],
    "wallet": ["to «1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa»", "«bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4»",
    "«0x52908400098527886E0F7030069857D2E4169EE7»"],
    "ipv4": ["from «52.14.88.201» port 22", "host «17.5.7.8»"],
    "ipv6": ["«2a00:1450:4001:81b::200e»"],
    "mac": ["«3c:22:fb:9a:01:7e»", "«3C-22-FB-9A-01-7E»"],
    "ssn": ["«123-45-6789»", "SSN: «123456789»"],
    "dni": ["DNI «12345678Z»", "NIE «X1234567L»", "dni 12345678L is wrong, «12345678-Z» right"],
    "nhs": ["NHS number «943 476 5919»"],
    "nino": ["«AB 12 34 56 C»", "nino: «AB123456C»"],
    "nir": ["«2 55 08 14 168 025 38»"],
    "steuer_id": ["Steuer-ID: «86095742719»"],
    "document": ["passport no. «C01X00T47»", "Reisepass: «C4VH12345»", "driver's license number is «D1234567»",
    "driver license: «D123-4567-8901»"],
    "name": [
        "My name is «Ada Byron».", "Hi, I'm «Ada Byron», hello", "Patient: «Ada Byron», 40", "Name: «Ada Byron»\n",
        "Dear Mr. «Okoye»,", "Ich heiße «Jörg Weiß» und", "me llamo «Lucía»",
        "Sincerely,\n«Ada M. Byron»\n",
        "Best regards,\n\n«Sinéad O'Connor»", "patient_name: «Ada Byron»", "Je m'appelle «Zoé»",
    ],
    "birth_date": ["DOB: «03/12/1985»", "date of birth: «12 March 1985»", "I was born on «March 12, 1985».",
    "Geburtsdatum: «12.03.1985»"],
    "address": [
        "at «123 Main Street, Springfield, IL 62704».", "«9 Elm Rd»", "in der «Goethestraße 12, 10115 Berlin»",
        "«12 rue de Rivoli, 75001 Paris»",
        "vive en «Calle Mayor 5»", "She lives at «12 Oak Court».",
    ],
    "private_key": ["«-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7bqQ2k9x\n-----END RSA PRIVATE KEY-----» end"],
    "jwt": ["«eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl»"],
    "login": ["postgres://«app:s3cr3tX»@db:5432/x", "Authorization: Basic «am86czNjcjN0»"],
    "aws_key": ["«AKIAIOSFODNN7EXAMPLE»", "aws_secret_access_key = «wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY»"],
    "github_token": ["«ghp_16C7e42F292c6912E7710c838347Ae178B4a»"],
    "gitlab_token": ["«glpat-a1B2c3D4e5F6g7H8i9J0»"],
    "slack_token": ["«xoxb-2345678901-abCDefGHij»"],
    "stripe_key": ["«sk_live_4eC39HqLyjWDarjtT1zdp7dc»"],
    "openai_key": ["«sk-proj-a1B2c3D4e5F6g7H8i9J0kLmN»"],
    "anthropic_key": ["«sk-ant-api03-a1B2c3D4e5F6g7H8i9J0»"],
    "huggingface_token": ["«hf_AbCdEfGhIjKlMnOpQrStUvWxYz12345678»"],
    "google_key": ["key=«AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q»"],
    "service_token": ["«npm_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8»"],
    "api_key": ['api_key: "«9f8d7c6b5a4e3d2c1b0a»"', "Authorization: Bearer «a1B2c3D4e5F6g7H8i9J0k»",
    "ACCESS_TOKEN=«q8W7e6R5t4Y3u2I1»"],
    "national_id": ["CPF «529.982.247-25»", "身份证号«11010519491231002X»", "PESEL: «44051401359»", "PAN: «ABCPK1234L»"],
    "password": ['password = "«hunter2»"', "Password: «Tr0ub4dor&3»\n", "The password is «xK9#mm2p».",
    "password: «correcthorsebatterystaple»", "pwd=«Passw0rd!»"],
}  # fmt: skip
NEAR = [
    "icon@2x.png", "x @ y.T", "@app.route", "git@github.com:a/b", "your_name@example.com",
    "ftp://user:pass@ftp.example.com", "person-0a1b2c3d@example.com",
    "order 123-4567890-1234567", "invoice 555-123-4567", "ISBN 978-3-16-148410-0", "from 1990-2020",
    "on 01/02/2003 10:30", "1 2 3 4 5 6 7 8 9 10", "01 02 03 04 05",
    "value 3.1415926535", "2**31-1 = 2147483647", "+999 170 1234567", "(999) 123-4567", "1700000000", "612 345 678",
    "472547338\n+960397912423686",
    "4111 1111 1111 1112", "1234567812345670", "order 4111111111111111", "0.4111111111111111", "9999 0000 0000 0008",
    "DE89 3704 0044 0532 0130 01", "ZZ68539007547034", "XX89 3704", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5",
    "version 1.2.3.4", "see 4.1.2.3", "192.168.0.1", "10.0.0.7", "127.0.0.1", "8.8.8.8", "192.0.2.1", "34.64.0.0/10",
    "300.1.2.3", "1.3.6.1.4.1", "::1", "fe80::1", "a[::2]", "2001:db8::1",
    "12:30:45", "00:00:5e:00:53:af", "ff:ff:ff:ff:ff:ff", "000-12-3456", "666-12-3456", "923-45-6789", "123-00-6789",
    "123456789", "12345678L", "12345678A", "NHS number 943 476 5918",
    "BG 12 34 56 A", "AB123456C", "2 55 08 14 168 025 39", "86095742719", "Steuer-ID: 86095742718", "C01X00T47",
    "passport control", "my name is on it", "My name is Claude.", "I am Vice President", "I'm Catholic and",
    "Thanks.\nThanks, all", "Authorization: Basic realm", "password: authentication", "pick one at a dot com",
    "Dear Hiring Manager,",
    "Dear Sir,", "Hello World,", "Hi there,", "Thanks,\nThe Team", "Best,\n[Your Name]",
    '"Thank you, Ben," said Lila.', "Einstein was born on 14 March 1879.", "DOB: 5 January 1900",
    "In 1950 Sunset Boulevard was filmed", "He ran 12 Miles Way ahead", "5th Avenue", "-----BEGIN PUBLIC KEY-----",
    "eyJub3QiOiJqd3QifQ.eyJzdWIiOiIxIn0.c2ln", "postgres://user:password@localhost/db",
    "https://a.b/c:d@e", "sk-circle-fade-dot-animation-x", "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "the task-force-of-nineteen-members", "api_key = YOUR_API_KEY_12345", "api_key = os.environ['API_KEY']",
    "token = tokenizer.encode(t)",
    "password = getpass()", "password: str", "Enter your password: ********", "password=<PASSWORD_12ab34>",
    "the password is required", "key points: 1. it is long", "secret = config.secret_value_1",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709", "550e8400-e29b-41d4-a716-446655440000", "$1,234,567.89", "0xDEADBEEF",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "marked"), [(k, t) for k, ts in FOUND.items() for t in ts])
def test_found_with_its_ends(kind, marked):
    start = marked.index("«")
    text = marked.replace("«", "").replace("»", "")
    assert find(text) == [(kind, start, marked.index("»") - 1)]


@pytest.mark.parametrize("text", NEAR)
def test_near_misses_are_not_found(text):
    assert find(text) == []


def test_every_kind_has_a_test():
    assert set(FOUND) == set(KINDS)


def test_check_digits_by_published_examples():
    assert luhn("79927398713")  # the example of Luhn's rule
    assert not luhn("79927398710")
    assert mod97("GB82WEST12345698765432") == 1  # the standard's example
    assert base58check("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa")  # the first block's
    assert bech32("BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4")  # BIP 173
    assert bech32("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0")  # BIP 350
    assert dni_letter(12345678) == "Z"
    assert nhs_check("943476591") == 9
    assert nir_key("2550814168025") == 38
    assert steuer_check("8609574271") == 9  # the tax office's example
    assert entropy("aabb") == 1.0


def test_kinds_choose_and_findings_do_not_overlap():
    text = "jo@acme.org, 52.14.88.201, postgres://a:b1c2d3@h/x"
    assert [k for k, _, _ in find(text)] == ["email", "ipv4", "login"]
    assert [k for k, _, _ in find(text, ("ipv4",))] == ["ipv4"]
    found = find("api_key = 'sk-proj-a1B2c3D4e5F6g7H8i9J0kLmN'")
    assert [k for k, _, _ in found] == ["openai_key"]  # the more telling kind stands


def test_long_texts_take_linear_time():
    """Nothing backtracks: a hundred thousand characters of what patterns begin with are read at once."""
    for piece in ("a@", "1 ", "1.", "0 0 ", "password ", "eyJ", "A", "My name is ", "://a:", "(1", "x-"):
        find(piece * (100_000 // len(piece)) + " secret key = 12 Main")


def test_the_gates_hide_nothing():
    """What a pattern finds when it is asked without its gate, words and needles, `find` finds too: on all that is labelled."""
    for text, _ in labelled(False, 3) + labelled(True, 3):
        found = find(text)
        for pattern in PATTERNS:
            for match in pattern.regex.finditer(text):
                span = pattern.check(match)
                assert span is None or any(span[0] < end and start < span[1] for _, start, end in found), (
                    pattern,
                    text,
                )


def test_a_long_text_gives_what_its_paragraphs_give():
    paragraphs = [
        f"Line {i} of the log, nothing here.\nWrite to ann{i}@corp-mail.com or call +49 30 901820{i:02d}."
        for i in range(80)
    ]
    text = "\n\n".join(paragraphs)
    found = find(text)
    assert [text[a:b] for kind, a, b in found if kind == "email"] == [f"ann{i}@corp-mail.com" for i in range(80)]
    assert [(kind, text[a:b]) for kind, a, b in found] == [(kind, p[a:b]) for p in paragraphs for kind, a, b in find(p)]
