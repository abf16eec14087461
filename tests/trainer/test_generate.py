"""The command that writes text: the model's own, repeatable by its seed, and plain about what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.character_models import tiny_model
from trainer import generate
from trainer.batches.text import Alphabet
from trainer.engine.randomness import as_seed
from trainer.model.charlm_folder import CharacterDescription, load_character_model, write_character_model
from trainer.model.sampling import Sampling

LOOKBACK = (3, 4, 5)
Command = Callable[..., tuple[int, str, str]]


def save_model(folder: Path, alphabet: Alphabet, **changes: float) -> Path:
    model = tiny_model(vocab_size=alphabet.size)
    tensors = dict(model.named_parameters())
    for name, value in changes.items():
        tensors[name] = torch.full_like(tensors[name], value)
    write_character_model(folder, CharacterDescription(model.config, LOOKBACK, alphabet), tensors)
    return folder


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("bytes") / "export", Alphabet("bytes"))


@pytest.fixture(scope="module")
def letters_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("letters") / "export", Alphabet("characters", " abcé漢"))


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = generate.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def written_by_the_full_forward(
    folder: Path, prompt: bytes, characters: int, sampling: Sampling, seed: int, number: int = 0
) -> bytes:
    """What the command should write, from the whole text for each character."""
    loaded = load_character_model(folder)
    generator = torch.Generator().manual_seed(as_seed("generated text", seed, number))
    ids = [*loaded.alphabet.encode(prompt).tolist()]
    start = len(ids)
    for _ in range(characters):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids]), loaded.lookback)[:, -1]
        ids += sampling.choose(logits, torch.rand(1, dtype=torch.float64, generator=generator)).tolist()
    return loaded.alphabet.decode(np.array(ids[start:]))


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ((), Sampling()),
        (("--temperature", 0), Sampling(temperature=0)),
        (("--temperature", 0.7, "--top-k", 40, "--top-p", 0.8), Sampling(0.7, 40, 0.8)),
    ],
)
def test_the_text_is_what_the_full_forward_writes(
    bytes_model: Path, command: Command, options: tuple[object, ...], sampling: Sampling
) -> None:
    prompt = "Whatever came before, " * 5
    code, text, said = command(
        "--model", bytes_model, "--prompt", prompt, "--characters", 150, "--seed", 3, *options
    )
    expected = written_by_the_full_forward(bytes_model, prompt.encode(), 150, sampling, 3)
    assert (code, text) == (0, expected.decode("utf-8", errors="replace"))
    assert "generate: 150 characters in" in said
    assert "after a prompt of 110 in" in said


def test_bytes_are_decoded_as_they_come(bytes_model: Path, command: Command) -> None:
    """Characters of several bytes are whole, bytes that are none show as U+FFFD, the last unfinished one too."""
    expected = written_by_the_full_forward(bytes_model, b"\n", 600, Sampling(), 0).decode(errors="replace")
    assert "\ufffd" in expected
    assert any(ord(character) > 127 for character in expected.replace("\ufffd", ""))
    assert command("--model", bytes_model, "--characters", 600)[1] == expected


def test_a_model_of_characters_writes_utf_8(letters_model: Path, command: Command) -> None:
    code, text, _ = command("--model", letters_model, "--prompt", "é漢", "--characters", 80)
    assert code == 0
    assert len(text) == 80
    assert set("é漢") < set(text) <= set(" abcé漢")


def test_a_text_depends_on_its_seed_and_number_alone(bytes_model: Path, command: Command) -> None:
    def texts(*options: object) -> str:
        return command("--model", bytes_model, "--prompt", "x", "--characters", 40, *options)[1]

    one, other = texts("--seed", 1), texts("--seed", 2)
    assert one == texts("--seed", 1) != other
    three = texts("--seed", 1, "--count", 3)
    assert three.startswith(f"=== 1 of 3 ===\n{one}\n=== 2 of 3 ===\n")
    third = written_by_the_full_forward(bytes_model, b"x", 40, Sampling(), 1, number=2)
    assert three.endswith(f"\n=== 3 of 3 ===\n{third.decode(errors='replace')}")


def test_without_a_prompt_a_text_starts_as_after_a_newline_or_space(
    bytes_model: Path, letters_model: Path, tmp_path: Path, command: Command
) -> None:
    for model, before in ((bytes_model, "\n"), (letters_model, " ")):
        assert command("--model", model)[:2] == command("--model", model, "--prompt", before)[:2]
    neither = save_model(tmp_path / "neither", Alphabet("characters", "ab"))
    code, text, said = command("--model", neither)
    assert (code, text) == (2, "")
    assert said == "generate: --prompt: found none, expected one: the model knows neither newline nor space\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--prompt", "abXc"),
            "--prompt: character 3: found 'X', expected one of the 6 that the model knows",
        ),
        (("--prompt", ""), "--prompt: found nothing, expected a character or more"),
        (("--prompt-file", "{tmp}/empty"), "{tmp}/empty: found nothing, expected a character or more"),
        (("--prompt-file", "{tmp}/missing"), "--prompt-file: {tmp}/missing: No such file or directory"),
        (("--prompt-file", "{tmp}"), "--prompt-file: {tmp}: Is a directory"),
        (("--prompt-file", "{tmp}/latin-1"), "{tmp}/latin-1: byte 2: no UTF-8"),
        (("--model", "{tmp}"), "{tmp}/config.json"),
        (("--characters", "0"), "--characters: found 0, expected at least 1"),
        (("--temperature", "nan"), "--temperature: found nan, expected a number from 0 on"),
        (("--temperature", "inf"), "--temperature: found inf"),
        (
            ("--top-k", "0", "--top-p", "1.5"),
            "--top-k: found 0, expected at least 1\n--top-p: found 1.5, expected",
        ),
        (("--seed", "-1"), "--seed: found -1, expected at least 0"),
        (("--count", "0"), "--count: found 0, expected at least 1"),
        (("--count", "2", "--temperature", "0"), "--count: found 2, expected 1: at --temperature 0"),
    ],
)
def test_what_does_not_fit_is_named(
    letters_model: Path, tmp_path: Path, command: Command, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "latin-1").write_bytes(b"a\xe9")
    code, text, said = command(
        "--model", letters_model, *(option.replace("{tmp}", str(tmp_path)) for option in options)
    )
    assert (code, text) == (2, "")
    assert said.startswith(f"generate: {message.replace('{tmp}', str(tmp_path))}")


def test_a_model_that_gives_no_numbers_is_named(tmp_path: Path, command: Command) -> None:
    folder = save_model(tmp_path / "diverged", Alphabet("bytes"), bias=float("nan"))
    code, text, said = command("--model", folder)
    assert (code, text) == (2, "")
    assert said.startswith(f"generate: {folder}: found logits that are not finite")


@pytest.mark.parametrize(
    "changes", [{"lookback": [3, 4, 10**400]}, {"lookback": [3, 1 << 36, 5], "dilation": [1, 1 << 16, 1]}]
)
def test_windows_that_no_memory_holds_are_named(
    changes: dict[str, list[int]], tmp_path: Path, command: Command
) -> None:
    folder = save_model(tmp_path / "export", Alphabet("bytes"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    code, text, said = command("--model", folder)
    assert (code, text) == (2, "")
    assert said.startswith(f"generate: {folder}: found windows that take more than the ")


def test_a_terminal_gets_no_commands_from_the_model(
    bytes_model: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """A model of bytes draws escape sequences as any other bytes."""
    plain = command("--model", bytes_model, "--characters", 300)[1]
    assert set(plain) & set(map(chr, (*range(8), *range(14, 32))))
    master, slave = os.openpty()
    with open(slave, "w", encoding="utf-8") as terminal:  # noqa: PTH123 - of a descriptor
        monkeypatch.setattr(sys, "stdout", terminal)
        assert generate.main(["--model", str(bytes_model), "--characters", "300"]) == 0
        monkeypatch.undo()
        shown = os.read(master, 1 << 16).replace(b"\r\n", b"\n").decode()
    os.close(master)
    assert len(shown) == len(plain) + 1  # and a newline, after which the shell's prompt stands
    assert {a for a, b in zip(shown, plain) if a != b} == {"\ufffd"}
    assert not [character for character in shown if character < " " and character not in "\t\n\r"]


def endless(model: Path) -> subprocess.Popen[bytes]:
    """The command at work on a text that does not end, having read its prompt from standard input."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "trainer.generate",
            "--model",
            model,
            "--prompt-file",
            "-",
            "--characters",
            "99999999",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write("é漢".encode())
    process.stdin.close()
    process.stdin = None
    return process


def test_it_streams_and_ends_quietly_where_its_reader_does(letters_model: Path, command: Command) -> None:
    process = endless(letters_model)
    assert process.stdout is not None
    first = process.stdout.read(20)
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=60) == (None, b"")
    assert process.returncode == 0
    expected = command("--model", letters_model, "--prompt", "é漢", "--characters", 20)[1]
    assert expected.encode().startswith(first)


def test_an_interrupt_ends_it_with_a_word(letters_model: Path) -> None:
    process = endless(letters_model)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, b"generate: stopped\n")


LOGITS = st.lists(st.floats(-8, 8, allow_nan=False), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(LOGITS, st.floats(0.1, 4), st.one_of(st.none(), st.integers(1, 15)), st.floats(0.01, 1))
def test_choices_have_the_chances_that_the_options_leave(
    values: list[float], temperature: float, top_k: int | None, top_p: float
) -> None:
    """Over evenly spread numbers each character comes as often as its share, to one in either direction."""
    logits, spread = torch.tensor(values, dtype=torch.float64), 2000
    chances = (logits / temperature).softmax(0)
    likeliest = sorted(range(len(values)), key=lambda i: (-float(chances[i]), i))[:top_k]
    kept, total = [], float(chances[likeliest].sum())
    for i in likeliest:
        if not kept or float(chances[kept].sum()) < top_p * total - 1e-12:
            kept.append(i)
    uniform = (torch.arange(spread, dtype=torch.float64) + 0.5) / spread
    chosen = Sampling(temperature, top_k, top_p).choose(logits.expand(spread, -1), uniform)
    counts = chosen.bincount(minlength=len(values)).double()
    assert set(chosen.tolist()) <= set(kept)
    assert ((counts[kept] - spread * chances[kept] / chances[kept].sum()).abs() <= 1).all()


def test_the_likeliest_is_taken_at_temperature_0_and_near_it() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -1.0], [0.0, 0.0, 0.0, 5.0]])
    uniform = torch.tensor([0.3, 0.999], dtype=torch.float64)
    assert Sampling(temperature=0).choose(logits, uniform).tolist() == [1, 3]
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=5e-324, top_k=1)):
        assert sampling.choose(logits, uniform).tolist() == [1, 3]


def test_the_greatest_number_below_one_has_its_character() -> None:
    below_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    for size in range(1, 300):
        assert int(Sampling().choose(torch.zeros(1, size), below_one)) == size - 1
