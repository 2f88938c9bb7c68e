# SPDX-License-Identifier: Apache-2.0
"""Building programs for devices: what is in them, what they cost, and what is said when it does not work."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rpcflow.minrpc.boards import BOARDS, KEPT
from rpcflow.minrpc.building import BuildError, build, put_in_place
from rpcflow.minrpc.sizes import cost_of

from ..once import once
from .building import INCLUDE, RUNTIME, STRICT_C, STRICT_CPP, need, run

PROGRAMS = Path(__file__).parents[2] / "examples" / "firmware"
FIRMWARE = [name for name, board in BOARDS.items() if board.script]
GOOD = "#include <rpcflow/runtime.h>\nint answer(void);\nint answer(void) { return 42; }\n"


def need_compiler(board: str) -> str:
    return need(BOARDS[board].compilers[0], BOARDS[board].package)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("standard", ["C99", "C++17"])
def test_everything_compiles_without_warnings(board: str, standard: str, tmp_path: Path) -> None:
    compiler = need_compiler(board)
    strict = STRICT_C if standard == "C99" else STRICT_CPP
    for pattern in BOARDS[board].sources:
        for source in sorted(RUNTIME.glob(pattern)):
            if source.suffix == ".c":
                run([compiler, *strict, *BOARDS[board].flags, *INCLUDE, "-c", source, "-o", tmp_path / "made.o"])


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The firmware of each board whose compiler is here."""

    def built(board: str) -> Path:
        need_compiler(board)
        name = f"{board}-example.elf"
        return once(tmp_path_factory, name, lambda made: build(board, made, [PROGRAMS / "kernels.c"]))

    return {board: built(board) for board in FIRMWARE}


@pytest.mark.parametrize("board", FIRMWARE)
def test_a_firmware_has_what_loaded_modules_need(board: str, elf: dict[str, Path]) -> None:
    nm = run([need_compiler(board), "-print-prog-name=nm"]).strip()
    symbols = {line.split()[-1] for line in run([nm, "--defined-only", elf[board]]).splitlines()}
    assert set(KEPT) <= symbols
    assert {"rpcflow_memory_begin", "rpcflow_memory_end"} <= symbols


@pytest.mark.parametrize("board", FIRMWARE)
def test_a_firmware_knows_its_build_id(board: str, elf: dict[str, Path]) -> None:
    """The note lies in flash, between the symbols that the program goes by, and is the one that tools find."""
    pytest.importorskip("elftools", reason="SKIPPED, pyelftools is missing: the build id was NOT TESTED")
    from elftools.elf.elffile import ELFFile

    with elf[board].open("rb") as file:
        opened = ELFFile(file)
        symbols = opened.get_section_by_name(".symtab")
        begin, end = (
            symbols.get_symbol_by_name(f"rpcflow_build_id_{which}")[0]["st_value"] for which in ("begin", "end")
        )
        text = opened.get_section_by_name(".text")
        note = text.data()[begin - text["sh_addr"] : end - text["sh_addr"]]
    assert note[:16] == bytes([4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0]) + b"GNU\0"
    assert len(note) == 36
    assert any(note[16:])


def test_two_programs_have_two_build_ids(tmp_path: Path) -> None:
    need_compiler("lm3s6965evb")
    ids = []
    for number in range(2):
        source = tmp_path / f"kernel{number}.c"
        source.write_text(GOOD.replace("42", str(number)).replace("answer", "rpcflow_memory_answer"))
        build("lm3s6965evb", tmp_path / "fw", [source], options=["-Wl,--undefined=rpcflow_memory_answer"])
        ids.append((tmp_path / "fw").read_bytes())
    assert ids[0] != ids[1]


def test_a_cortex_m3_has_room_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The runtime and the link layer: at most 12 KiB of flash, and 1 KiB of RAM besides buffers."""
    need_compiler("lm3s6965evb")
    cost = cost_of(BOARDS["lm3s6965evb"])
    with capsys.disabled():
        print(f"\nruntime and link on a Cortex-M3: {cost}")
    assert 8 * 1024 < cost.flash <= 12 * 1024
    assert 512 < cost.ram <= 1024
    assert cost.buffers >= 8 * 256


def test_a_size_is_obeyed(tmp_path: Path) -> None:
    compiler = need_compiler("lm3s6965evb")
    nm = run([compiler, "-print-prog-name=nm"]).strip()
    sizes = {"LINK_PAYLOAD_NBYTES": 32, "RPCFLOW_LINK_SEND_FRAMES": 1, "LINK_RECEIVE_FRAMES": 1}
    used = []
    for chosen in ({}, sizes):
        build("lm3s6965evb", tmp_path / "fw", sizes=chosen)
        symbols = run([nm, "-S", tmp_path / "fw"]).splitlines()
        (size,) = (line.split()[1] for line in symbols if line.endswith("rpcflow_board_link"))
        used.append(int(size, 16))
    # As config.h says: the payload for each frame, 8 bytes for one to send, 2 for one to receive.
    assert abs(used[0] - used[1] - (8 * 256 - 2 * 32 + 3 * 8 + 3 * 2)) < 4


def test_errors_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, output = tmp_path / "bad.c", tmp_path / "out"
    bad.write_text("int f(void) { return nosuch; }\n")
    with pytest.raises(BuildError, match=r"no board 'nosuch'; there are lm3s6965evb, .*posix-serial"):
        build("nosuch", output)
    with pytest.raises(BuildError, match="no size 'PACKAGE_NBYTES'; there are RPCFLOW_PACKET_NBYTES, "):
        build("posix", output, sizes={"PACKAGE_NBYTES": 3})
    with pytest.raises(BuildError, match="there is no file"):
        build("posix", output, [tmp_path / "nosuch.c"])
    with pytest.raises(BuildError, match=r"known suffixes are .*\.tar"):
        build("posix", output, [tmp_path / "kernel.py"])
    with pytest.raises(BuildError, match="no compiler nosuch-gcc"):
        build("posix", output, compiler="nosuch-gcc")
    with pytest.raises(BuildError, match=r"(?s)could not compile bad\.c:\n\S*cc .*nosuch.* undeclared") as caught:
        build("posix", output, [bad])
    assert caught.value.command is not None
    assert str(bad) in caught.value.command
    assert "nosuch" in (caught.value.output or "")
    undefined = tmp_path / "undefined.c"
    undefined.write_text("int nosuch(void);\n__attribute__((constructor)) static void f(void) { nosuch(); }\n")
    with pytest.raises(BuildError, match=r"(?s)could not link:.*undefined reference to .nosuch."):
        build("posix", output, [undefined])
    with pytest.raises(BuildError, match="could not write"):
        build("posix", tmp_path / "no" / "such" / "folder")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"):
        build("lm3s6965evb", output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.c", "undefined.c"]  # nothing is half done


def test_outputs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiler("posix")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BuildError, match="could not write"):
        build("posix", "")
    assert list(tmp_path.iterdir()) == []
    made = tmp_path / "made"
    made.touch()
    for output in (".", "..", "/", tmp_path, "n" * 300):
        with pytest.raises(BuildError, match="could not write"):
            put_in_place(made, Path(output))
    assert list(tmp_path.iterdir()) == [made]


def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_compiler("posix")
    monkeypatch.chdir(tmp_path)
    names = ["-x.c", "two words.c", "@file.c", "quo'te.c"]
    for number, name in enumerate(names):
        (tmp_path / name).write_text(GOOD.replace("answer", f"answer{number}"))
    build("posix", "-out put", names)
    assert (tmp_path / "-out put").stat().st_mode & 0o111


def test_two_builders_of_one_output(tmp_path: Path) -> None:
    """One after the other puts its own there, whole."""
    output, made = tmp_path / "output", [tmp_path / name for name in "ab"]
    for one in made:
        one.write_bytes(one.name.encode() * 5_000_000)

    def write(one: Path) -> None:
        for _ in range(20):
            put_in_place(one, output)
            assert len(set(output.read_bytes())) == 1

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, made))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "output"]


def test_a_board_that_is_too_small_says_by_how_much(tmp_path: Path) -> None:
    need_compiler("lm3s6965evb")
    with pytest.raises(BuildError, match=r"region .RAM. overflowed by \d+ bytes"):
        build("lm3s6965evb", tmp_path / "fw", sizes={"PACKET_NBYTES": 100_000})


def command(*arguments: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rpcflow.minrpc", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "good.c").write_text(GOOD)
    (tmp_path / "bad.c").write_text("int f(void) { return nosuch; }\n")
    made = command("--board", "posix", "-o", "made", "--size", "MAX_ARGS=20", "good.c", cwd=tmp_path)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert (tmp_path / "made").stat().st_mode & 0o111
    failed = command("--board", "posix", "-o", "made2", "bad.c", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: could not compile bad.c:")
    assert not (tmp_path / "made2").exists()
    for wrong in (["--board", "posix"], ["-o", "x"], ["--board", "posix", "-o", "x", "--size", "MAX_ARGS"]):
        assert command(*wrong, cwd=tmp_path).returncode == 2
    assert Path(command("--folder", cwd=tmp_path).stdout.strip()) == RUNTIME
    listed = command("--help", cwd=tmp_path).stdout
    assert all(name in listed for name in BOARDS)
