"""scripts/control.py in this process, on networks of random weights."""

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from test_cli import COMPILED

from score_jax import build, guided, interpolation, latents, posterior, sdedit
from score_jax import run as run_module
from score_jax import sde as sdes
from score_jax.data import example
from score_jax.data.base import DataSet, Split, to_model

DIGITS = dict(
    data=dict(name="digits"),
    sde=dict(name="vp"),
    net=dict(name="mlp", width=16, depth=1),
    model=dict(class_conditional=True),
    loss=dict(name="denoising"),
    optim=dict(name="adam"),
    train=dict(steps=1, batch_size=8, ema=(0.9,), label_dropout=0.1),
    sample=dict(name="ddim", n_steps=3),
)
CLASSIFIER = DIGITS | dict(
    sde=dict(name="edm"),
    net=dict(name="classifier", channels=4, multipliers=(1,), blocks=1, attention=(), groups=2),
    model=dict(output="class"),
    loss=dict(name="cross_entropy"),
    train=dict(steps=1, batch_size=8, ema=(0.9,)),
)
# one that was not told classes, one that was told always, another sort of data
UNCONDITIONAL = DIGITS | dict(
    model=dict(output="x0"), train=dict(steps=1, batch_size=8, ema=(0.9,))
)
ALWAYS = DIGITS | dict(train=dict(steps=1, batch_size=8, ema=(0.9,)))
CONSISTENCY = UNCONDITIONAL | dict(
    model=dict(output="consistency", class_conditional=True, sigma_data=0.5),
    loss=dict(name="consistency"),
    sample=dict(name="consistency"),
)
ZERO = DIGITS  # weights as they are initialised, an output of 0
POINTS = UNCONDITIONAL | dict(data=dict(name="toy2d"))


def write_run(folder, raw, spread):
    """A run with one checkpoint: the initial state, its parameters moved by noise of that spread."""
    config = build.resolve(raw)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    experiment = build.experiment(config)
    with run_module.checkpoints_of(folder, experiment) as checkpoints:
        state = run_module.start_state(experiment, checkpoints)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda a: np.asarray(a) + np.float32(spread) * rng.standard_normal(a.shape, np.float32),
            state.params,
        )
        checkpoints.save(1, state._replace(params=params, emas=(params,)), [])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs(name) -> the folder of a run, written when it is first asked for."""
    home, configs = tmp_path_factory.mktemp("runs"), globals()

    def folder(name):
        found = home / name
        spread = 0.0 if name == "ZERO" else 0.2
        return found if found.exists() else write_run(found, configs[name], spread)

    return folder


@pytest.fixture(scope="module")
def control():
    path, before = Path(__file__).parent.parent / "scripts" / "control.py", set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location("control_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - before:  # other scripts have flags of the same names
        delattr(flags.FLAGS, name)


@pytest.fixture
def call(control, runs, tmp_path, monkeypatch):
    """call(*args, run=NAME) -> exit code, in a folder of its own; @NAME in an argument is a run's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["control.py"])

    def called(*args, run="DIGITS"):
        args = [
            f"{a.partition('@')[0]}{runs(a.partition('@')[2])}" if "@" in a else a for a in args
        ]
        overrides = [a for a in args if a.startswith("--config.")]
        with flagsaver.flagsaver():
            rest = [a for a in args if a not in overrides]
            flags.FLAGS(["control.py", f"--workdir={runs(run)}", "--n=2", *rest])
            COMPILED.clear()
            try:
                return control.main(overrides)
            except SystemExit as end:
                return end.code

    return called


@pytest.fixture
def draw(call, tmp_path):
    """draw(*args) -> the arrays that were written."""

    def drawn(*args, **options):
        assert call(*args, "--out=a.npz", **options) == 0
        with np.load(tmp_path / "a.npz") as found:
            return dict(found)

    return drawn


def digit(index):
    """An image of the test split, by the rule of `score_jax.data.digits`."""
    return load_digits().images[np.arange(1797) % 5 == 1][index][..., None]


@pytest.mark.parametrize("method", ["projection", "pigdm"])
def test_inpainting_keeps_what_the_mask_shows(draw, method):
    found = draw(f"--method={method}", "--mask=right", "--index=3", "--steps=3")
    image = digit(3)
    np.testing.assert_array_equal(found["input"][0], image)
    np.testing.assert_array_equal(found["measured"][0, :, :4], image[:, :4])
    assert found["x"].shape == (2, 8, 8, 1)
    if method == "projection":
        # the last noise is far below one of 17 levels
        np.testing.assert_array_equal(found["x"][:, :, :4], np.tile(image[:, :4], (2, 1, 1, 1)))
    assert np.any(found["x"][0, :, 4:] != found["x"][1, :, 4:])


def test_a_blurred_image_is_shown_as_it_was_given(draw):
    found = draw("--task=deblur", "--method=projection", "--width=1", "--index=3", "--steps=1")
    blurred = gaussian_filter(digit(3)[..., 0] + 0.5, 1.0, mode="nearest", truncate=4)
    np.testing.assert_allclose(found["measured"][0, :, :, 0], np.floor(blurred), atol=1)
    assert np.abs(found["measured"].astype(int) - found["input"]).max() > 3


def test_an_image_file_is_edited_and_drawn(call, tmp_path, capsys):
    np.save(tmp_path / "in.npy", digit(0).astype(np.uint8))
    assert call("--task=sdedit", "--level=0.01", "--input=in.npy", "--label=0", "--steps=2") == 0
    assert "2 samples at step 0, sdedit: control.png" in capsys.readouterr().out
    with Image.open(tmp_path / "control.png") as drawn:
        assert drawn.mode == "L" and min(drawn.size) >= 17


def test_an_edit_with_little_noise_keeps_the_image(draw):
    """Noise of 0.001, and a prediction of it, are far below one of 17 levels."""
    found = draw("--task=sdedit", "--level=0.0015", "--index=0", "--steps=2")
    np.testing.assert_array_equal(found["x"], np.tile(digit(0), (2, 1, 1, 1)))


@pytest.mark.parametrize("make", [sdes.ve, sdes.edm, sdes.linear, sdes.ddpm])
def test_a_level_of_noise_has_a_time_after_t_min_or_is_refused(make):
    """In float32 the time of one a billionth above the lowest may be t_min itself."""
    sde, found = make(), []
    lowest = np.exp(-0.5 * float(sdes.log_snr_ends(sde)[0]))
    for level in lowest * np.array([1 + 1e-9, 1 + 1e-7, 1.01]):
        with contextlib.suppress(ValueError):
            found.append(sdedit.time_of_level(sde, level))
    assert found and min(found) > sde.t_min


def test_guidance_at_scale_one_is_the_model_told_the_class_and_the_composition_of_one_class(draw):
    of = lambda method, *args: draw("--task=class", f"--method={method}", "--label=3", *args)
    told = of("conditional")
    np.testing.assert_array_equal(told["label"], [3, 3])
    np.testing.assert_array_equal(of("classifier_free", "--option=scale=1")["x"], told["x"])
    strong = of("classifier_free", "--option=scale=3")["x"]
    np.testing.assert_array_equal(of("and", "--option=weight=3")["x"], strong)
    assert np.any(strong != told["x"])
    # eps + 2 (eps_3 - eps) - 1 (eps_3 - eps)
    less = "--not=3", "--option=weight=2", "--option=not_weight=1"
    np.testing.assert_allclose(of("and", *less)["x"].astype(int), told["x"], atol=1)
    # an interval below all times but the last leaves the model as it is told
    free = of("classifier_free", "--option=scale=3", "--option=interval=1e-4,1e-3")["x"]
    np.testing.assert_array_equal(free, told["x"])


def test_without_a_label_each_sample_has_a_class_in_turn(draw):
    found = draw("--task=class", "--method=conditional", "--config.sample.n_steps=3")
    np.testing.assert_array_equal(found["label"], [0, 1])


def test_a_classifier_of_another_sde_guides_a_model_that_knows_no_classes(draw, runs):
    args = "--method=classifier", "--classifier=@CLASSIFIER", "--option=scale=20", "--label=3"
    pushed = draw("--task=class", *args, run="UNCONDITIONAL")
    np.testing.assert_array_equal(pushed["label"], [3, 3])
    experiment = build.experiment(build.resolve(UNCONDITIONAL))
    _, params = run_module.averaged_params(runs("UNCONDITIONAL"), experiment)
    free = guided.draw(experiment, gradients=True)(params, 2, 3)
    assert np.all(np.any(free["x"] != pushed["x"], axis=(1, 2, 3)))


def test_a_row_goes_from_one_input_to_the_other_on_the_great_circle(draw):
    """Where eps is predicted as 0 the codes are alpha(t_max) times the inputs, and so the row is theirs."""
    found = draw("--task=interpolate", "--index=3", "--index=5", "--n=3", run="ZERO")
    np.testing.assert_array_equal(found["input"], np.stack([digit(3), digit(5)]))
    np.testing.assert_array_equal(found["x"][[0, 2]], found["input"])
    a, b = (to_model(digit(i).astype(np.float32)[None] + 0.5, 17) for i in (3, 5))
    middle = np.asarray(latents.slerp(jnp.asarray(a), jnp.asarray(b), 0.5))[0]
    middle = np.clip(middle, -1, 1)  # half a level from the middle of its box at most
    np.testing.assert_allclose(to_model(found["x"][1] + 0.5, 17), middle, atol=1.01 / 17)


def test_methods_draw_in_their_own_ways_what_is_hidden(draw):
    """From the same noise, of weights that are random."""
    given = "--task=inpaint", "--mask=left", "--index=3", "--label=3", "--std=0.1", "--steps=4"
    methods = {"repaint": ["--option=jump=2", "--option=repeats=2"], "dps": [], "tsmc": []}
    found = [draw(*given, f"--method={name}", *more)["x"] for name, more in methods.items()]
    assert all(x.shape == (2, 8, 8, 1) for x in found)
    assert len({x[:, :, :4].tobytes() for x in found}) == len(methods)


def test_all_tasks_methods_and_options_are_listed(control):
    text = control.listing()
    methods = (*posterior.METHODS, *guided.METHODS, *interpolation.METHODS)
    for name in (*methods, *control.TASKS, "class", "sdedit", "interpolate"):
        assert f"\n  {name} " in text
    assert text.count("arXiv") >= 12
    assert "--mask --input --index" in text and "scale=2.0 interval=None rescale=0.0" in text
    assert "scripts/sample.py --temperature" in text


def test_overrides_of_the_sampler_are_refused(call, capsys):
    assert call("--config.sample.n_steps=3") == 2
    message = "control.py: --config.sample.n_steps=3 has no effect here; --list shows methods, --steps how many"
    assert capsys.readouterr().err == message + "\n"


GUIDED = ["--task=class"]


@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        ("DIGITS", ["--method=pigdm"], "--method=pigdm is no method of class; choose from condit"),
        ("DIGITS", ["--label=10"], "--label=10, but there are 10 classes, from 0"),
        ("DIGITS", ["--method=not", "--not=10"], "--not=10, but there are 10 classes, from 0"),
        ("DIGITS", ["--label=1", "--label=2"], "classifier_free takes at most 1 --label, and 2"),
        ("DIGITS", ["--method=and"], "--method=and takes at least 1 --label, and 0 are given"),
        ("DIGITS", ["--method=not", "--label=1", "--not=2"], "--method=not takes no --label, and"),
        ("DIGITS", ["--method=product", "--label=1"], "product takes at least 2 --label, and 1"),
        ("DIGITS", ["--not=1"], "--method=classifier_free takes no --not, and 1 are given"),
        ("DIGITS", ["--mask=left"], "--mask is not for --task=class, which takes --label, --not"),
        (
            "DIGITS",
            ["--option=interval=3"],
            "--option=interval=3 must be 2 numbers, as interval=0.3,3",
        ),
        (
            "DIGITS",
            ["--option=interval=3,1"],
            "interval = 3,1 must be two noise levels, the lower first",
        ),
        (
            "DIGITS",
            ["--option=interval=a,b"],
            "--option=interval=a,b must be 2 numbers, as interval=0.3,3",
        ),
        ("DIGITS", ["--option=scale=1,2"], "--option=scale=1,2 must be a number, as scale=2.0"),
        (
            "DIGITS",
            ["--steps=3", "--config.sample.n_steps=4"],
            "--steps=3 is short for --config.sample.n_steps=4; give one of them",
        ),
        ("DIGITS", ["--option=rescale=2"], "rescale = 2 is a share, at least 0 and at most 1"),
        (
            "DIGITS",
            ["--method=conditional", "--option=scale=2"],
            "--option=scale=2: write NAME=VALUE with a name of conditional; it has none",
        ),
        ("DIGITS", ["--config.sample.n_steps=0"], "config.sample.n_steps is 0; it must be at lea"),
        ("DIGITS", ["--config.net.width=8"], "config.net.width is fixed by the run"),
        ("DIGITS", ["--method=classifier"], "--method=classifier needs --classifier=FOLDER of a"),
        (
            "DIGITS",
            ["--classifier=@CLASSIFIER"],
            "is for --method=classifier, not classifier_free",
        ),
        (
            "DIGITS",
            ["--method=classifier", "--classifier=@UNCONDITIONAL"],
            "is no classifier's run, its config.loss.name is 'denoising'; train one: configs/",
        ),
        ("DIGITS", ["--method=classifier", "--classifier=none"], "no run in none: config.json is"),
        (
            "POINTS",
            ["--method=classifier", "--classifier=@CLASSIFIER"],
            "knows examples of shape (8, 8, 1), and the run's are (2,); take one of the same data",
        ),
        ("UNCONDITIONAL", [], "--method=classifier_free needs a model that knows classes, and the"),
        ("ALWAYS", [], "--method=classifier_free asks for no class too, which the run's model nev"),
        ("CLASSIFIER", [], "'cross_entropy': a classifier draws no samples, it guides those of"),
        ("CONSISTENCY", [], "--method=classifier_free adds scores, and config.loss.name is 'cons"),
    ],
)
def test_guidance_that_cannot_work_ends_in_one_line_before_anything_compiles(
    call, tmp_path, capsys, run, args, message
):
    assert call(*GUIDED, *args, run=run) == 2
    err = capsys.readouterr().err
    assert err.startswith("control.py: ") and err.count("\n") == 1
    assert message in err
    assert not COMPILED and not (tmp_path / "control.png").exists()


def files(folder):
    np.save(folder / "high.npy", np.full((8, 8, 1), 17))
    np.save(folder / "real.npy", np.full((8, 8, 1), 0.5))
    Image.new("L", (9, 8)).save(folder / "wide.png")
    Image.new("L", (8, 8), 255).save(folder / "white.png")
    (folder / "text.png").write_text("no image")
    (folder / "empty.npy").touch()
    np.savez(folder / "archive.npz", x=np.zeros((8, 8, 1)))
    (folder / "archive.npz").rename(folder / "archive.npy")
    np.save(folder / "words.npy", np.full((8, 8, 1), "a"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task=inpant"], "--task=inpant is no task; did you mean inpaint? choose from inpaint,"),
        (
            ["--method=pgdm"],
            "--method=pgdm is no method of inpaint; did you mean pigdm? choose from",
        ),
        (
            ["--option=eat=1"],
            "--option=eat=1: write NAME=VALUE with a name of pigdm; did you mean eta",
        ),
        (["--option=eta=x"], "--option=eta=x must be a number, as eta=1.0"),
        (["--option=eta=-1"], "--option=eta=-1 must be finite and at least 0"),
        (["--option=eta=2"], "--option=eta=2 must be at least 0 and at most 1"),
        (["--task=interpolate", "--seed=1"], "--seed is not for --task=interpolate, which takes"),
        (["--task=interpolate", "--n=1"], "--n=1, but a row has two ends; give --n=2 or more"),
        (
            ["--method=repaint", "--option=jump=1.5"],
            "--option=jump=1.5 must be a whole number, as jump=10",
        ),
        (["--out=a.jpg"], "--out=a.jpg must be a file that ends in .png or .npz"),
        ([], "give one of --input=FILE and --index=NUMBER"),
        (["--index=0", "--input=wide.png"], "give one of --input=FILE and --index=NUMBER"),
        (["--task=interpolate", "--index=0"], "give 2 in all of --input=FILE and --index=NUMBER"),
        (["--task=sdedit", "--std=0.1"], "--std is not for --task=sdedit, which takes --input,"),
        (
            ["--index=0", "--label=1", "--label=2"],
            "--task=inpaint takes one --label, and 2 are given",
        ),
        (
            ["--task=sdedit", "--index=0", "--config.sample.name=langevin"],
            "config.sample.name is 'langevin', which has no times to begin in the middle of",
        ),
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
        (["--input=empty.npy"], "empty.npy is no .npy of numbers (EOF: reading magic string"),
        (["--input=archive.npy"], "archive.npy is no .npy of numbers (the magic string is not"),
        (["--input=words.npy"], "words.npy holds <U1; it must hold real numbers"),
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


def test_an_image_file_is_no_input_for_continuous_data(tmp_path):
    """Its bytes would be taken for the data's own units."""
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    split = Split(np.zeros((2, 8, 8, 1), np.float32), None)
    with pytest.raises(ValueError, match="the run's data are continuous; give a .npy of shape"):
        example.from_file(tmp_path / "white.png", DataSet("d", split, split, split, None))


def test_a_mask_hides_what_is_black(tmp_path):
    Image.fromarray(np.array([[0, 255, 100], [200, 127, 128]], np.uint8)).save(tmp_path / "m.png")
    mask = example.mask_from_file(tmp_path / "m.png", (2, 3, 1))
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, True]])


@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        (
            "ALWAYS",
            ["--task=interpolate", "--index=0", "--index=1"],
            "knows 10 classes; give --lab",
        ),
        ("CONSISTENCY", ["--index=0"], "--task=inpaint needs a score at every time; config.loss"),
        ("POINTS", ["--index=0"], "inpaint needs images, and the run's data have shape (2,)"),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_named(call, capsys, run, args, message):
    assert call(*args, run=run) == 2
    err = capsys.readouterr().err
    assert err.startswith("control.py: ") and err.count("\n") == 1
    assert message in err
