"""scripts/control.py in this process, on a network that has hardly been trained."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from sklearn.datasets import load_digits
from test_scripts import home, run  # noqa: F401  fixtures

from score_jax import posterior


@pytest.fixture(scope="module")
def control():
    path = Path(__file__).parent.parent / "scripts" / "control.py"
    spec = importlib.util.spec_from_file_location("control_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(control, run, tmp_path, monkeypatch):  # noqa: F811
    """call(*flags) -> exit code, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["control.py"])

    def called(*args):
        with flagsaver.flagsaver():
            flags.FLAGS(["control.py", f"--workdir={run}", "--n=2", "--steps=3", *args])
            try:
                return control.main([])
            except SystemExit as end:
                return end.code

    return called


def digit(index):
    """An image of the test split, by the rule of `score_jax.data.digits`."""
    return load_digits().images[np.arange(1797) % 5 == 1][index][..., None]


@pytest.mark.parametrize("method", ["projection", "pigdm"])
def test_inpainting_keeps_what_the_mask_shows(call, tmp_path, method):
    assert call(f"--method={method}", "--mask=right", "--index=3", "--out=a.npz") == 0
    with np.load(tmp_path / "a.npz") as found:
        image = digit(3)
        np.testing.assert_array_equal(found["input"][0], image)
        np.testing.assert_array_equal(found["measured"][0, :, :4], image[:, :4])
        assert found["x"].shape == (2, 8, 8, 1)
        if method == "projection":
            # the last noise is far below one of 17 levels
            np.testing.assert_array_equal(found["x"][:, :, :4], np.tile(image[:, :4], (2, 1, 1, 1)))
        assert np.any(found["x"][0, :, 4:] != found["x"][1, :, 4:])


def test_an_image_file_is_edited_and_drawn(call, tmp_path, capsys):
    np.save(tmp_path / "in.npy", digit(0).astype(np.uint8))
    assert call("--task=sdedit", "--level=0.01", "--input=in.npy", "--label=0") == 0
    assert "2 samples at step 6, sdedit: control.png" in capsys.readouterr().out
    with Image.open(tmp_path / "control.png") as drawn:
        assert drawn.mode == "L" and min(drawn.size) >= 17


def test_all_tasks_and_methods_are_listed(control):
    text = control.listing()
    for name in (*posterior.METHODS, *control.TASKS, "sdedit"):
        assert f"  {name} " in text
    assert text.count("arXiv") >= 5


def test_overrides_of_the_sampler_are_refused(control, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["control.py"])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        flags.FLAGS(["control.py", "--workdir=none"])
        control.main(["--config.sample.n_steps=3"])
    assert end.value.code == 2
    message = "control.py: --config.sample.n_steps=3 has no effect here; --list shows methods, --steps how many"
    assert capsys.readouterr().err == message + "\n"


def files(folder):
    np.save(folder / "high.npy", np.full((8, 8, 1), 17))
    np.save(folder / "real.npy", np.full((8, 8, 1), 0.5))
    Image.new("L", (9, 8)).save(folder / "wide.png")
    Image.new("L", (8, 8), 255).save(folder / "white.png")
    (folder / "text.png").write_text("no image")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task=inpant"], "--task=inpant is no task; did you mean inpaint? choose from inpaint,"),
        (["--method=pgdm"], "--method=pgdm is no method; did you mean pigdm? choose from"),
        (
            ["--option=eat=1"],
            "--option=eat=1: write NAME=VALUE with a name of pigdm; did you mean eta",
        ),
        (["--option=eta=x"], "--option=eta=x must be a number, as eta=1.0"),
        (["--option=eta=-1"], "--option=eta=-1 must be finite and at least 0"),
        (
            ["--method=repaint", "--option=jump=1.5"],
            "--option=jump=1.5 must be a whole number, as jump=10",
        ),
        (["--out=a.jpg"], "--out=a.jpg must be a file that ends in .png or .npz"),
        ([], "give one of --input=FILE and --index=NUMBER"),
        (["--index=360"], "--index=360 is not in the test split, 0 to 359"),
        (["--input=wide.png"], "wide.png has shape (8, 9, 1); the model's is (8, 8, 1): resize it"),
        (
            ["--input=white.png"],
            "white.png has values from 255 to 255; the data have integers from 0 to 16",
        ),
        (["--input=high.npy"], "high.npy has values from 17 to 17; the data have integers from 0"),
        (
            ["--input=real.npy"],
            "real.npy has values from 0.5 to 0.5; the data have integers from 0",
        ),
        (["--input=text.png"], "text.png is no image of a format among"),
        (["--input=none.png"], "No such file or directory: 'none.png'"),
        (["--index=0", "--mask=middle"], "--mask=middle is no file; choose from center, left"),
        (
            ["--index=0", "--mask=wide.png"],
            "--mask=wide.png is (8, 9); the model's images are (8, 8)",
        ),
        (["--index=0", "--std=-1"], "--std=-1 must be finite and at least 0"),
        (["--index=0", "--label=10"], "--label=10, but the run's model knows 10 classes, from 0"),
        (["--index=0", "--task=colorize"], "colorization needs images of 3 channels, and one is"),
        (
            ["--index=0", "--task=super_resolution", "--factor=3"],
            "factor = 3 must divide the image's",
        ),
        (["--index=0", "--task=deblur", "--width=0"], "width = 0.0 of the blur must be a positive"),
        (
            ["--index=0", "--task=random_mask", "--share=0"],
            "share = 0.0 of observed pixels must be",
        ),
        (["--index=0", "--task=sdedit", "--level=1e9"], "level = 1e+09 of the noise must be above"),
        (
            ["--index=0", "--method=tsmc"],
            "tsmc weights samples by p(y | x0), which std = 0.0 makes",
        ),
        (
            ["--index=0", "--method=tsmc", "--std=0.1", "--option=particles=3"],
            "2 samples are no whole number of groups of particles = 3; take a divisor",
        ),
        (
            ["--index=0", "--method=repaint", "--option=jump=0"],
            "jump = 0 and repeats = 10 must be at least 1",
        ),
    ],
)
def test_what_cannot_work_ends_in_one_line(call, tmp_path, capsys, args, message):
    files(tmp_path)
    assert call(*args) == 2
    err = capsys.readouterr().err
    assert err.startswith("control.py: ") and err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "control.png").exists()
