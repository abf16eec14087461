"""`python -m trainer.evaluate --text`: a stored character model over a text, end to end, and what does not fit."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from attention import backends
from tests.trainer.character_models import SMALLER, tiny_model
from trainer.batches.text import Alphabet
from trainer.evaluate import main
from trainer.evaluate_text import Renumbered, as_numbered_by
from trainer.model.charlm import CharacterModel
from trainer.model.charlm_folder import CharacterDescription, TrainedText, write_character_model

TEXT = "a naïve fable of a façade\n" * 20
LOOKBACK = (3, 5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where TEXT and models lie."""
    backends()  # loads the kernel from the usual cache: in an empty one it would be built again
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    return tmp_path


def stored(folder: Path, alphabet: Alphabet, text: TrainedText | None = None) -> CharacterModel:
    model = tiny_model(vocab_size=alphabet.size, **SMALLER)
    write_character_model(
        folder, CharacterDescription(model.config, LOOKBACK, alphabet, text), model.state_dict()
    )
    return model


def command(model: Path, text: Path | str, *options: str) -> list[str]:
    return ["--model", str(model), "--text", str(text), *options]


def bits(model: CharacterModel, ids: list[int]) -> float:
    """A character, where one window holds all."""
    characters = torch.tensor(ids)[None]
    with torch.no_grad():
        chances = model(characters[:, :-1], LOOKBACK)[0].double().log_softmax(-1)
    return -float(chances.gather(1, characters[0, 1:, None]).mean()) / math.log(2)


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_the_command_prints_the_bits_of_the_split(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letters = "".join(sorted(set(TEXT)))
    model = stored(
        folder / "model", Alphabet("bytes") if kind == "bytes" else Alphabet("characters", letters)
    )
    ids = list(TEXT.encode()) if kind == "bytes" else [letters.index(letter) for letter in TEXT]
    held = round(0.05 * len(ids))
    for options, chosen in (
        ([], ids[-2 * held : -held]),
        (["--split", "test"], ids[-held:]),
        (["--split", "test", "--test", "0.5"], ids[-round(0.5 * len(ids)) :]),
        (["--split", "validation", "--validation", "100", "--test", "7"], ids[-107:-7]),
        (["--split", "all"], ids),
    ):
        assert main(command(folder / "model", folder / "text", *options)) == 0
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        assert found == {
            "bpc": pytest.approx(bits(model, chosen), rel=1e-5),
            "characters": len(chosen) - 1,
            "windows": 1,
        }


def test_the_first_windows_say_what_they_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(folder / "model", Alphabet("bytes"))
    sizes = ["--split", "train", "--sequence-length", "64", "--step", "16"]
    figures = []
    for options in (["--windows", "3"], ["--windows", "1000"], []):
        assert main(command(folder / "model", folder / "text", *sizes, *options)) == 0
        figures.append(json.loads(capsys.readouterr().out))
    characters = len(TEXT.encode()) - 2 * round(0.05 * len(TEXT.encode()))
    assert figures[0]["windows"] == 3
    assert figures[0]["characters"] == 64 + 16 + 16
    assert figures[1] == figures[2]
    assert figures[2]["characters"] == characters - 1
    assert figures[2]["windows"] == 1 + math.ceil((characters - 1 - 64) / 16)


def test_another_text_is_read_in_the_model_s_alphabet(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose ids are numbered by the characters that it holds itself, and of which the split alone must be known."""
    letters = "".join(sorted(set(TEXT)))
    model = stored(folder / "model", Alphabet("characters", letters))
    other = "q" * 100 + "façade of a lane\n" * 10
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("other", other)
    assert main(command(folder / "model", folder / "other.zip", "--test", "60")) == 0
    found = json.loads(capsys.readouterr().out)
    ids = [letters.index(letter) for letter in other[-60 - round(0.05 * len(other)) : -60]]
    assert found["bpc"] == pytest.approx(bits(model, ids), rel=1e-5)
    assert main(command(folder / "model", folder / "other.zip", "--split", "train")) == 2
    message = f"train: found 'q'; expected only the {len(letters)} characters that the model knows"
    assert message in capsys.readouterr().err


def test_renumbered_ids_are_those_of_the_characters() -> None:
    own, model = Alphabet("characters", "abd"), Alphabet("characters", "abcdé")
    ids = own.encode(b"dabba")
    renumbered = as_numbered_by(ids, own, model)
    assert isinstance(renumbered, Renumbered)
    assert len(renumbered) == 5
    assert np.array_equal(renumbered[1:], model.encode(b"abba"))
    assert as_numbered_by(ids, own, own) is ids


def test_bad_input_is_one_message_and_exit_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = folder / "model", folder / "text"
    stored(model, Alphabet("bytes"))
    (folder / "mlm").mkdir()
    (folder / "mlm" / "config.json").write_text('{"model_type": "roberta"}')
    (folder / "short").write_text("tiny")
    for arguments, message in (
        (command(model, text, "--sequence-length", "256"), "--step: found 512, expected 1 to"),
        (
            command(model, text, "--step", "0"),
            "--step: found 0, expected 1 to the --sequence-length of 32256",
        ),
        (command(model, text, "--windows", "0"), "--windows: found 0, expected at least 1"),
        (command(model, text, "--test", "-1"), "--test: found -1.0, expected"),
        (command(model, text, "--test", "nan"), "--test: found nan, expected"),
        (command(model, text, "--test", "1e9"), "characters, expected more than"),
        (command(model, folder / "short"), "short: validation: found 0 characters, expected at least 2"),
        (command(model, folder / "none"), "none: No such file"),
        (command(folder / "mlm", text), "model_type: found 'roberta', expected"),
        (command(folder / "nowhere", text), "nowhere"),
        (
            command(model, text, "--sequences", "3"),
            "--sequences: found with --text, expected with --corpus only",
        ),
        (command(model, text, "--mask-documents"), "--mask-documents: found with --text"),
        (
            ["--model", str(model), "--corpus", "c", "--step", "1"],
            "--step: found with --corpus, expected with",
        ),
        (
            ["--model", str(model), "--corpus", "c", "--split", "test"],
            "--split: found test, expected train or",
        ),
    ):
        assert main(arguments) == 2, message
        output = capsys.readouterr()
        assert message in output.err
        assert output.err.count("\n") == 1
        assert output.out == ""
    for arguments in ([], ["--corpus", "c", "--text", "t"]):
        with pytest.raises(SystemExit) as stopped:
            main(["--model", str(model), *arguments])
        assert stopped.value.code == 2


def test_the_text_of_the_training_is_cut_as_it_was_then(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that nothing is scored that the model has read."""
    ids = list(TEXT.encode())
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    for sha256, held in ((digest, 200), ("another", round(0.05 * len(ids)))):
        trained = TrainedText(sha256, (len(ids) - 300, 100, 200))
        model = stored(folder / "model", Alphabet("bytes"), trained)
        assert main(command(folder / "model", folder / "text", "--split", "test")) == 0
        assert json.loads(capsys.readouterr().out)["bpc"] == pytest.approx(bits(model, ids[-held:]))
    stored(folder / "model", Alphabet("bytes"), TrainedText(digest, (len(ids) - 300, 100, 200)))
    assert main(command(folder / "model", folder / "text", "--test", "50")) == 0
    assert json.loads(capsys.readouterr().out)["bpc"] == pytest.approx(bits(model, ids[-150:-50]))
