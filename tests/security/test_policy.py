# SPDX-License-Identifier: Apache-2.0
"""The policy file: what is in it, what is refused, and who is who."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpcflow.errors import AuthenticationError
from rpcflow.security.grant import EVERYTHING, Grant
from rpcflow.security.policy import PolicyFile, Rules
from rpcflow.security.tokens import hash_token

ADA, BOB, CAT = "token-of-ada", "token-of-bob", "token-of-cat"
PIN_ADA, PIN_BOB, PIN_CAT = (f"sha256:{digit * 64}" for digit in "abc")
LAB = f"""
[policy.lab]
keys = ["gpu*", "!gpu9"]
functions = ["*", "!secret.*"]
constructors = ["rpc.LocalSession"]
upload = false
load = false
devices = ["cpu:*", "gpu:0"]
max_sessions = 2
session_seconds = 0.5
memory = "4GiB"
cpu_seconds = 100
processes = 64
file = 1000
folder = "2 MiB"

[policy.guest]

[client.ada]
policy = "lab"
token = "{hash_token(ADA)}"
certificate = "{PIN_ADA}"

[client.bob]
policy = "guest"
token = ["{hash_token(BOB)}", "{hash_token("another")}"]
subject = "bob"

[client.cat]
policy = "guest"
token = "{hash_token(CAT)}"
certificate = ["{PIN_CAT}", "sha256:{"d" * 64}"]
require = "all"
"""
ANONYMOUS = '[anonymous]\npolicy = "guest"\n'
CLIENT = '[policy.p]\n[client.c]\npolicy = "p"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def rules(path: Path, text: str) -> Rules:
    path.write_text(text)
    return PolicyFile(path).current()


class TestContents:
    def test_everything(self, path: Path) -> None:
        client = rules(path, LAB).identify(ADA, None, None)
        assert client.name == "ada"
        policy = client.policy
        assert (policy.name, policy.max_sessions, policy.session_seconds) == ("lab", 2, 0.5)
        assert policy.grant("ada") == Grant(
            who="ada",
            functions=("*", "!secret.*"),
            constructors=("rpc.LocalSession",),
            upload=False,
            load=False,
            devices=("cpu:*", "cuda:0"),  # by the name that devices go by
            memory_nbytes=4 << 30,
            cpu_seconds=100,
            processes=64,
            file_nbytes=1000,
            folder_nbytes=2 << 20,
        )
        assert [policy.allows_key(key) for key in ("gpu1", "gpu9", "rpi", "")] == [True, False, False, False]

    def test_nothing(self, path: Path) -> None:
        policy = rules(path, LAB).identify(BOB, None, None).policy
        assert policy.grant("") == EVERYTHING
        assert policy.max_sessions is None
        assert policy.session_seconds is None
        assert policy.allows_key("anything")

    @pytest.mark.parametrize(
        ("size", "nbytes"),
        [("1", 1), ("1B", 1), ("3KiB", 3 << 10), ("512MiB", 512 << 20), ("4 GiB", 4 << 30), ("1TiB", 1 << 40)],
    )
    def test_sizes(self, path: Path, size: str, nbytes: int) -> None:
        text = f'[policy.p]\nmemory = "{size}"\nfile = {nbytes}\n[anonymous]\npolicy = "p"'
        grant = rules(path, text).identify("", None, None).policy.grant("x")
        assert grant.memory_nbytes == grant.file_nbytes == nbytes

    def test_no_pattern_lets_nothing_in(self, path: Path) -> None:
        text = '[policy.p]\nkeys = []\ndevices = []\n[anonymous]\npolicy = "p"'
        policy = rules(path, text).identify("", None, None).policy
        assert not policy.allows_key("k")
        assert policy.grant("").devices == ()

    def test_an_empty_file_refuses_all(self, path: Path) -> None:
        with pytest.raises(AuthenticationError):
            rules(path, "").identify("", None, None)


WRONG = [
    ("x = 1", "[x]"),
    ("[policies.p]", "[policies]"),
    ("policy = 1", "[policy]"),
    ("[policy]\np = 1", "[policy.p]"),
    ("client = []", "[client]"),
    ("anonymous = 1", "[anonymous]"),
    ("[anonymous]", "[anonymous] policy"),
    ('[anonymous]\npolicy = "p"', "[anonymous] policy: there is no [policy.p]"),
    ('[policy.p]\n[anonymous]\npolicy = "p"\ntoken = "x"', "[anonymous]: there is no key 'token'"),
    ("[client.c]", "[client.c] policy"),
    ("[client.c]\npolicy = 1", "[client.c] policy"),
    ('[client.c]\npolicy = "p"', "[client.c] policy: there is no [policy.p]"),
    (CLIENT, "[client.c] token"),
    (CLIENT + "token = 1", "[client.c] token"),
    (CLIENT + "token = []", "[client.c] token"),
    (CLIENT + "token = [1]", "[client.c] token"),
    (CLIENT + 'token = "s3cret"', "[client.c] token"),
    (CLIENT + f'token = ["{hash_token("x")}", "s3cret"]', "[client.c] token"),
    (CLIENT + f'token = "{hash_token("s3cret").upper()}"', "[client.c] token"),
    (CLIENT + f'token = "{hash_token("x")} "', "[client.c] token"),
    (CLIENT + f'token = "{hash_token("x").removeprefix("sha256:")}"', "[client.c] token"),
    (CLIENT + 'certificate = "s3cret.pem"', "[client.c] certificate"),
    (CLIENT + 'subject = ""', "[client.c] subject"),
    (CLIENT + "subject = 1", "[client.c] subject"),
    (CLIENT + 'subject = "c"\nrequire = "both"', "[client.c] require"),
    (CLIENT + 'subject = "c"\nrequire = true', "[client.c] require"),
    (CLIENT + 'subject = "c"\ntokens = "s3cret"', "[client.c]: there is no key 'tokens'"),
    ('[policy.p]\n[client.anonymous]\npolicy = "p"\nsubject = "x"', "[client.anonymous]"),
    ('[policy.p]\n[client."a\\nb"]\npolicy = "p"\nsubject = "x"', "[client.'a\\nb']"),
    ('[policy.p]\n[client.""]\npolicy = "p"\nsubject = "x"', "[client.'']"),
    ("[policy.p]\nfunction = []", "[policy.p]: there is no key 'function'"),
    ("[policy.p]\nwho = 'x'", "[policy.p]: there is no key 'who'"),
    ("[policy.p]\nmemory_nbytes = 1", "[policy.p]: there is no key 'memory_nbytes'"),
    *(
        (f"[policy.p]\n{key} = {value}", f"[policy.p] {key}")
        for key in ("keys", "functions", "constructors", "devices")
        for value in ('"*"', "[1]", '[""]', "{}", '["!cpu:*"]', '["!cpu:*", "*"]')
    ),
    *((f"[policy.p]\ndevices = {value}", "[policy.p] devices") for value in ('["cuda"]', '["*", "!cuda"]')),
    *((f"[policy.p]\ndevices = {value}", "[policy.p] devices") for value in ('["nvidia:0"]', '["cuda:"]', '[":0"]')),
    *((f"[policy.p]\n{key} = {value}", f"[policy.p] {key}") for key in ("upload", "load") for value in (0, '"no"')),
    *(
        (f"[policy.p]\n{key} = {value}", f"[policy.p] {key}")
        for key in ("max_sessions", "cpu_seconds", "processes")
        for value in (0, -1, 1.5, "true", '"1"', 2**63)
    ),
    *((f"[policy.p]\nsession_seconds = {value}", "[policy.p] session_seconds") for value in (0, -1, "nan", "inf")),
    *((f"[policy.p]\nsession_seconds = {value}", "[policy.p] session_seconds") for value in ("true", '"1"')),
    *(
        (f"[policy.p]\n{key} = {value}", f"[policy.p] {key}")
        for key in ("memory", "file", "folder")
        for value in (0, -1, 1.5, "true", '"0"', '"4GB"', '"4gib"', '"-1"', '"1.5GiB"', '""', '"9999999999GiB"', "[1]")
    ),
]


class TestWrong:
    @pytest.mark.parametrize(("text", "where"), WRONG)
    def test_it_names_file_table_and_key_and_nothing_else(self, path: Path, text: str, where: str) -> None:
        with pytest.raises(ValueError) as caught:  # the text is looked at below
            rules(path, text)
        assert str(caught.value).startswith(f"{path}: ")
        assert where in str(caught.value)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("data", [b"[policy.p", b"a = ", b"\xff", b"[policy.p]\n[policy.p]"])
    def test_no_toml(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"policy\.toml: "):
            PolicyFile(path)

    @pytest.mark.parametrize("key", ["token", "certificate", "subject"])
    def test_twins(self, path: Path, key: str) -> None:
        one = "name" if key == "subject" else PIN_ADA
        text = f'{CLIENT}{key} = ["{PIN_BOB}", "{one}"]\n[client.d]\npolicy = "p"\n{key} = "{one}"'
        with pytest.raises(ValueError, match=rf"\[client.d\] {key}: \[client.c\] has the same"):
            rules(path, text)

    def test_a_file_that_is_not_there(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            PolicyFile(path)

    @pytest.mark.skipif(os.name != "posix", reason="these are POSIX rights")
    def test_a_file_that_everybody_may_write_to(self, path: Path) -> None:
        path.write_text(LAB)
        path.chmod(0o646)
        with pytest.raises(ValueError, match="chmod o-w") as caught:
            PolicyFile(path)
        assert str(path) in str(caught.value)


class TestWho:
    @pytest.mark.parametrize(
        ("token", "certificate", "subject", "name"),
        [
            (ADA, None, None, "ada"),
            ("", PIN_ADA, None, "ada"),
            (ADA, PIN_ADA, None, "ada"),
            ("", PIN_ADA, "somebody", "ada"),
            (ADA, f"sha256:{'9' * 64}", None, "ada"),  # a certificate that we do not know says nothing
            (ADA, f"sha256:{'9' * 64}", "somebody", "ada"),
            (BOB, None, None, "bob"),
            ("another", None, "", "bob"),
            ("", f"sha256:{'9' * 64}", "bob", "bob"),
            (BOB, f"sha256:{'9' * 64}", "bob", "bob"),
            (CAT, PIN_CAT, None, "cat"),
            (CAT, f"sha256:{'d' * 64}", "somebody", "cat"),
        ],
    )
    @pytest.mark.parametrize("anonymous", ["", ANONYMOUS])
    def test_known(
        self, path: Path, anonymous: str, token: str, certificate: str | None, subject: str | None, name: str
    ) -> None:
        assert rules(path, LAB + anonymous).identify(token, certificate, subject).name == name

    @pytest.mark.parametrize(
        ("token", "certificate", "subject"),
        [
            ("wrong", None, None),
            ("wrong", PIN_ADA, None),  # a token that is shown has to be good
            ("wrong", None, "bob"),
            (hash_token(ADA), None, None),  # who has read the policy file knows no token
            (ADA, None, "bob"),
            (ADA, PIN_CAT, None),
            (BOB, PIN_ADA, None),
            ("", PIN_ADA, "bob"),
            (CAT, None, None),  # needs both
            ("", PIN_CAT, None),
            (CAT, PIN_ADA, None),
            (CAT, f"sha256:{'9' * 64}", None),
        ],
    )
    @pytest.mark.parametrize("anonymous", ["", ANONYMOUS])
    def test_refused_always_in_the_same_words(
        self, path: Path, anonymous: str, token: str, certificate: str | None, subject: str | None
    ) -> None:
        with pytest.raises(AuthenticationError) as caught:
            rules(path, LAB + anonymous).identify(token, certificate, subject)
        assert str(caught.value) == "the server does not know a client that shows this"
        assert not caught.value.details

    @pytest.mark.parametrize(
        ("certificate", "subject"),
        [(None, None), (None, ""), (f"sha256:{'9' * 64}", None), (f"sha256:{'9' * 64}", "somebody")],
    )
    def test_nobody(self, path: Path, certificate: str | None, subject: str | None) -> None:
        with pytest.raises(AuthenticationError):
            rules(path, LAB).identify("", certificate, subject)
        client = rules(path, LAB + ANONYMOUS).identify("", certificate, subject)
        assert (client.name, client.policy.name) == ("anonymous", "guest")

    def test_all_three_where_all_are_asked_for(self, path: Path) -> None:
        text = f'{CLIENT}token = "{hash_token(ADA)}"\ncertificate = "{PIN_ADA}"\nsubject = "ada"\nrequire = "all"'
        found = rules(path, text)
        assert found.identify(ADA, PIN_ADA, "ada").name == "c"
        for shown in [(ADA, PIN_ADA, None), (ADA, None, "ada"), ("", PIN_ADA, "ada"), (ADA, None, None)]:
            with pytest.raises(AuthenticationError):
                found.identify(*shown)

    @given(
        token=st.sampled_from(["", ADA, BOB, CAT, "wrong"]),
        certificate=st.sampled_from([None, PIN_ADA, PIN_BOB, PIN_CAT]),
        subject=st.sampled_from([None, "", "ada", "bob"]),
        anonymous=st.booleans(),
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_nobody_is_two_and_no_wrong_token_comes_in(
        self, path: Path, token: str, certificate: str | None, subject: str | None, anonymous: bool
    ) -> None:
        owners = {"ada": (ADA, PIN_ADA, "-"), "bob": (BOB, "-", "bob"), "cat": (CAT, PIN_CAT, "-")}
        claims = {
            name
            for name, (their_token, pin, common) in owners.items()
            if token == their_token or certificate == pin or subject == common
        }
        found = rules(path, LAB + (ANONYMOUS if anonymous else ""))
        try:
            name = found.identify(token, certificate, subject).name
        except AuthenticationError as error:
            text = str(error)
            shown = [ADA, BOB, CAT, "wrong", PIN_ADA, "'ada'", "'bob'", "'cat'"]
            assert not [secret for secret in shown if secret in text]
            return
        assert token != "wrong"
        assert claims == ({name} if name != "anonymous" else set())
        assert name != "anonymous" or anonymous
        assert name != "cat" or (token == CAT and certificate == PIN_CAT)


def replace(path: Path, text: str) -> None:
    """As editors do it: another file under the same name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class TestReload:
    def test_changes_are_seen_and_nothing_else_is_read(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text(LAB)
        file = PolicyFile(path)
        before = file.current()
        assert file.current() is before
        replace(path, LAB.replace("client.ada", "client.eve"))  # of the same length
        assert file.current().identify(ADA, None, None).name == "eve"
        assert file.current() is file.current()
        path.write_text(LAB)
        assert file.current().identify(ADA, None, None).name == "ada"

    def test_one_that_is_taken_out_is_not_known_any_more(self, path: Path) -> None:
        path.write_text(LAB)
        file = PolicyFile(path)
        file.current().identify(BOB, None, None)
        replace(path, LAB.replace(hash_token(BOB), hash_token("new")))
        with pytest.raises(AuthenticationError):
            file.current().identify(BOB, None, None)

    @pytest.mark.parametrize("broken", ["[policy.lab]\nmemry = 1", "[", None, "open to all"])
    def test_a_broken_one_is_said_once_and_changes_nothing(
        self, path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        path.write_text(LAB)
        file = PolicyFile(path)
        before = file.current()
        if broken is None:
            path.unlink()
        elif broken == "open to all":
            path.chmod(0o666)
        else:
            replace(path, broken)
        assert file.current() is before
        assert file.current() is before
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("rpcflow.security", "ERROR")
        assert str(path) in record.getMessage()
        replace(path, LAB.replace("client.ada", "client.eve"))
        assert file.current().identify(ADA, None, None).name == "eve"
        assert [entry.levelname for entry in caplog.records] == ["ERROR", "INFO"]

    def test_another_fault_is_said_again(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path.write_text(LAB)
        file = PolicyFile(path)
        for text in ("[a]", "[b]"):
            replace(path, text)
            file.current()
        assert [("[a]" in text, "[b]" in text) for text in caplog.messages] == [(True, False), (False, True)]

    def test_a_file_that_is_written_to_while_it_is_read(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text(LAB)
        real, times = os.fstat, []

        def fstat(fd: int) -> Any:
            status = real(fd)
            times.append(fd)
            if len(times) in (2, 6):  # between the two looks of one reading
                with path.open("a") as file:
                    file.write("# more\n")
                return real(fd)
            return status

        monkeypatch.setattr("rpcflow.security.policy.os.fstat", fstat)
        assert PolicyFile(path).current().identify(ADA, None, None).name == "ada"
        assert len(times) == 4

    def test_a_file_that_never_rests(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text(LAB)
        real = os.fstat

        def fstat(fd: int) -> Any:
            with path.open("a") as file:
                file.write("# more\n")
            return real(fd)

        monkeypatch.setattr("rpcflow.security.policy.os.fstat", fstat)
        with pytest.raises(ValueError, match="is being written to all the time"):
            PolicyFile(path)
