"""Images in folders and zips: classes, splits, pixels, the cache, and what is refused."""

import io
import os
import stat
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from score_jax.data import listing as listings
from score_jax.data.base import Rows
from score_jax.data.folder import folder
from score_jax.data.image import read_image

RNG = np.random.default_rng(0)


def pixels(height=4, width=4, channels=3):
    return RNG.integers(256, size=(height, width, channels)).astype(np.uint8)


def encode(image, fmt="PNG", **options):
    """The bytes of an image file, from an array [h, w, c] or a Pillow image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    content = io.BytesIO()
    image.save(content, fmt, **options)
    return content.getvalue()


def png(*header, data=b""):
    """A PNG file of that header (width, height, bits, colour type) and those raw rows."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), (b"IDAT", zlib.compress(data))]
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


def write_zip(path, files):
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return str(path)


WRITERS = pytest.mark.parametrize("write", [write_folder, write_zip])


@pytest.fixture
def load(tmp_path):
    """load(files, write, **options) -> the data set of those files, or of the ones already written."""

    def fn(files, write=write_folder, **options):
        path = str(tmp_path / "images") + (".zip" if write is write_zip else "")
        if files is not None:
            path = write(tmp_path / "images", files)
        return folder(path, **{"cache": str(tmp_path / "cache"), "workers": 0} | options)

    return fn


def splits_with(image, **others):
    """Files in three splits; `image` is the one of training."""
    files = {f"{split}/a/1.png": encode(pixels()) for split in ("validation", "test")}
    return {"train/a/1.png": image} | files | others


def content(data):
    """{(split, class or None): images} of a data set."""
    found = {}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        labels = [None] * len(split.x) if split.label is None else split.label
        for x, label in zip(split.x[:], labels, strict=True):
            key = name, None if label is None else data.class_names[label]
            found.setdefault(key, []).append(x)
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(np.stack(found[key]), np.stack(expected[key]), str(key))


# classes and splits


@WRITERS
@pytest.mark.parametrize("validation", ["validation", "val"])
@pytest.mark.parametrize("around", ["", "cifar/", "a/b/"])
def test_splits_and_classes_are_the_folders(load, write, validation, around):
    a, b, c, d, e = (pixels() for _ in range(5))
    files = {"train/dog/2.png": a, "train/dog/10.png": b, "train/cat/deep/er/x.PNG": c}
    files |= {f"{validation}/dog/1.png": d, "test/ant/1.png": e}
    data = load({around + name: encode(x) for name, x in files.items()}, write)
    assert (data.name, data.levels, data.n_classes, data.shape) == ("folder", 256, 3, (4, 4, 3))
    assert data.class_names == ("ant", "cat", "dog")
    assert data.train.label.dtype == np.int32
    expected = {("train", "dog"): [b, a], ("train", "cat"): [c]}  # in the order of the names
    same(content(data), expected | {("validation", "dog"): [d], ("test", "ant"): [e]})


def test_images_beside_each_other_have_no_classes(load):
    x = pixels()
    data = load({"train/1.png": encode(x), "val/1.png": encode(x), "test/1.png": encode(x)})
    assert data.n_classes == 0 and data.class_names == () and data.train.label is None


def many(n, start=0, prefix=""):
    """n images of one class out of three, each of its own: the number is in the pixels."""
    return {
        f"{prefix}{'abc'[i % 3]}/{i}.png": encode(np.array([[[i % 256, i // 256, 7]]], np.uint8))
        for i in range(start, start + n)
    }


def numbers(split):
    return {int(x[0, 0, 0]) + 256 * int(x[0, 0, 1]) for x in split.x[:]}


def test_missing_splits_are_taken_from_training_at_their_fractions(load):
    data = load(many(1000), validation_fraction=0.1, test_fraction=0.2)
    train, validation, test = (numbers(s) for s in (data.train, data.validation, data.test))
    assert train | validation | test == set(range(1000))
    assert len(train) + len(validation) + len(test) == 1000
    for found, p in [(validation, 0.1), (test, 0.2)]:
        assert abs(len(found) - 1000 * p) < 4 * np.sqrt(1000 * p * (1 - p))
    np.testing.assert_array_equal(data.test.label, [i % 3 for i in _in_order(data.test)])


def _in_order(split):
    return [int(x[0, 0, 0]) + 256 * int(x[0, 0, 1]) for x in split.x[:]]


def test_adding_images_moves_none_and_a_fraction_moves_only_its_own_split(load):
    before, again = load(many(200)), load(many(200), test_fraction=0.3)
    assert numbers(before.validation) == numbers(again.validation)
    assert numbers(before.test) < numbers(again.test)
    after = load(many(400))
    for name in ("train", "validation", "test"):
        old, new = (numbers(getattr(data, name)) for data in (before, after))
        assert old and {i for i in new if i < 200} == old


@pytest.mark.parametrize("around", ["imgs/", "a/b/", "train/", "imgs/train/"])
@WRITERS
def test_the_same_images_are_held_out_whatever_is_around_them(load, tmp_path, write, around):
    """Else a model that was trained on the one would be tested on what it has seen."""
    expected = load(many(60))
    path = write(tmp_path / "other", many(60, prefix=around))
    data = folder(path, cache=str(tmp_path / "cache"), workers=0)
    for name in ("train", "validation", "test"):
        found = numbers(getattr(data, name))
        assert found and found == numbers(getattr(expected, name))


def test_the_parent_of_a_folder_holds_out_the_same_images(load, tmp_path):
    expected = load(many(60))
    data = folder(str(tmp_path), cache=str(tmp_path / "cache"), workers=0)
    assert numbers(data.test) == numbers(expected.test) != set()


def test_only_the_split_that_is_missing_is_taken_from_training(load):
    files = many(100, prefix="train/") | many(5, 100, prefix="test/")
    data = load(files)
    assert numbers(data.test) == set(range(100, 105))
    assert numbers(data.train) | numbers(data.validation) == set(range(100))
    assert 0 < len(data.validation.x) < 20


def test_a_class_may_be_called_test(load):
    names = [f"{name}/{i}.png" for name in ("test", "apple") for i in range(60)]
    data = load({name: encode(pixels()) for name in names})
    assert data.class_names == ("apple", "test")


@WRITERS
def test_what_is_no_image_or_hidden_is_ignored(load, write):
    names = ["train/a/.x.png", "train/.git/1.png", "__MACOSX/train/a/1.png", "train/Thumbs.db"]
    junk = dict.fromkeys([*names, "train/a/notes.txt", "README", ".DS_Store"], b"no image")
    data = load(splits_with(encode(pixels())) | junk, write)
    assert [len(split.x) for split in (data.train, data.validation, data.test)] == [1, 1, 1]


def test_links_are_followed_but_not_in_circles(load, tmp_path):
    elsewhere = pixels()
    write_folder(tmp_path / "elsewhere", {"1.png": encode(elsewhere)})
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/train/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/train/loop").symlink_to(tmp_path / "images")
    data = load(splits_with(encode(pixels())))
    assert len(data.train.x) == 2
    np.testing.assert_array_equal(content(data)["train", "b"], [elsewhere])


# pixels


@pytest.mark.parametrize("height, width", [(6, 11), (11, 6), (6, 6)])
def test_the_centre_is_cropped_exactly_where_the_shorter_side_is_the_size(height, width):
    x = pixels(height, width)
    top, left = (height - 6) // 2, (width - 6) // 2
    found = read_image(encode(x), 6, 3)
    np.testing.assert_array_equal(found, x[top : top + 6, left : left + 6])


@pytest.mark.parametrize("height, width", [(96, 60), (60, 96)])
def test_resizing_keeps_a_ramp_and_its_scale(height, width):
    """A linear ramp of 2 levels a pixel, resized by 1 / 3, is one of 6, and centred at the same level."""
    along = 2 * np.arange(width) + (128 - (width - 1))
    x = np.broadcast_to(along[None, :, None], (height, width, 3)).astype(np.uint8)
    found = read_image(encode(x), 20, 3).astype(float)
    assert found.shape == (20, 20, 3)
    middle = slice(4, 16)  # the filter is cut off at the edges
    np.testing.assert_allclose(np.diff(found[:, middle], axis=1), 6, atol=1)
    assert found[:, middle].mean() == pytest.approx(128, abs=0.5)


def test_resizing_averages_what_a_smaller_image_cannot_show():
    """Stripes of one pixel, 0 and 255: without antialiasing some of them would survive."""
    x = np.zeros((128, 128, 1), np.uint8)
    x[:, ::2] = 255
    found = read_image(encode(x), 20, 1)[3:-3, 3:-3].astype(float)
    np.testing.assert_allclose(found, 127.5, atol=8)


def test_the_filter_is_lanczos_of_support_three():
    """A bright row enlarged 8 times rings below zero at its neighbours, and is over after three."""
    x = np.full((15, 15, 1), 100, np.uint8)
    x[7] = 200
    found = read_image(encode(x), 120, 1)[:, 60, 0].astype(float)
    distance = (np.arange(120) + 0.5) / 8 - 7.5
    kernel = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    np.testing.assert_allclose(found, 100 + 100 * kernel, atol=2)


def test_channels_are_converted_where_nothing_is_lost():
    grey, colour = pixels(channels=1), pixels()
    opaque = np.concatenate([colour, np.full((4, 4, 1), 255, np.uint8)], axis=2)
    palette = Image.fromarray(grey[..., 0]).convert("RGB").quantize(16)
    bits = Image.fromarray(grey[..., 0] > 128)
    triple = np.repeat(grey, 3, axis=2)
    for image, expected in [
        (grey, triple),
        (opaque, colour),
        (palette, np.asarray(palette.convert("RGB"))),
        (bits, 255 * np.repeat(grey > 128, 3, axis=2)),
    ]:
        np.testing.assert_array_equal(read_image(encode(image), None, 3), expected)
    np.testing.assert_array_equal(read_image(encode(triple), None, 1), grey)
    np.testing.assert_array_equal(read_image(encode(bits), None, 1), 255 * (grey > 128))


@pytest.mark.parametrize("orientation, turned", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_images_are_turned_upright(orientation, turned):
    x = np.zeros((8, 16, 3), np.uint8)
    x[:, 8:] = 255  # even JPEG keeps blocks of one colour
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(encode(x, "JPEG", exif=exif), None, 3)
    np.testing.assert_array_equal(found, np.rot90(x, turned))


@pytest.mark.parametrize("fmt", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(fmt):
    first, second = (Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 255))
    options = {"lossless": True} if fmt == "WEBP" else {}
    content = encode(first, fmt, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(read_image(content, None, 3), np.zeros((8, 8, 3)))


# the cache


@WRITERS
def test_images_are_decoded_once_and_mapped_into_memory(load, write, tmp_path, capsys):
    first = load(splits_with(encode(pixels())), write)
    second = load(None, write)
    assert capsys.readouterr().err.count("decoding 3 images") == 1
    for data in (first, second):
        assert isinstance(data.train.x, Rows) and isinstance(data.train.x.array, np.memmap)
    same(content(second), content(first))
    assert len(list((tmp_path / "cache").iterdir())) == 1


@WRITERS
def test_changed_images_and_options_are_decoded_anew(load, write, tmp_path):
    x, y = pixels(), pixels()
    np.testing.assert_array_equal(load(splits_with(encode(x)), write).train.x[:], [x])
    # as many bytes, another content
    before, after = (encode(z, compress_level=0) for z in (x, y))
    assert len(before) == len(after)
    np.testing.assert_array_equal(load(splits_with(before), write).train.x[:], [x])
    time.sleep(0.02)  # more than the resolution of a file's time
    np.testing.assert_array_equal(load(splits_with(after), write).train.x[:], [y])
    assert load(splits_with(after), write, size=2).shape == (2, 2, 3)
    grey = {name: encode(pixels(channels=1)) for name in splits_with(b"")}
    assert load(grey, write).shape == (4, 4, 3)
    assert load(grey, write, channels=1).shape == (4, 4, 1)


# what is refused

GOOD = encode(pixels())
BAD = {
    "truncated": (GOOD[:-40], "cannot be read (image file is truncated"),
    "truncated jpeg": (encode(pixels(64, 64), "JPEG")[:900], "cannot be read (image file is trunc"),
    "damaged": (GOOD[:45] + bytes([GOOD[45] ^ 255]) + GOOD[46:], "cannot be read (broken"),
    "text": (b"<html>not found</html>", "is no image of a format among JPEG, PNG, WEBP, BMP, GIF"),
    "tiff": (encode(pixels(), "TIFF"), "is no image of a format among"),
    "empty": (b"", "is no image of a format among"),
    "size": (encode(pixels(4, 5)), "is 5x4, where others are 4x4; set config.data.size to resize"),
    "transparent": (encode(pixels(channels=4)), "is partly transparent"),
    "cmyk": (encode(Image.new("CMYK", (4, 4)), "JPEG"), "is of mode CMYK, not 8-bit RGB or grey"),
    "16-bit grey": (encode(Image.new("I;16", (4, 4))), "has 16 bits per channel"),
    "16-bit RGB": (png(4, 4, 16, 2, data=bytes(4 * 25)), "has 16 bits per channel"),
    "bomb": (png(60_000, 60_000, 8, 2), "is too large (Image size (3600000000 pixels) exceeds"),
    "small bomb": (png(10_000, 10_000, 8, 2), "is too large (Image size (100000000 pixels) exceed"),
}


@WRITERS
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_in_one_line(load, tmp_path, write, kind):
    image, why = BAD[kind]
    with pytest.raises(ValueError) as raised:
        load(splits_with(GOOD) | {"train/b/bad.png": image}, write)
    path = write(tmp_path / "images", {})
    message = str(raised.value)
    assert message.startswith(f"{path}/train/b/bad.png {why}") and "\n" not in message
    assert message.endswith("; mend or remove it, or set config.data.on_bad_image to skip")


@WRITERS
def test_bad_images_are_left_out_counted_and_listed_at_every_run(load, write, capsys, tmp_path):
    bad = {f"train/b/{kind}.png": image for kind, (image, _) in BAD.items()}
    bad |= {"train/z/1.png": GOOD}
    for files in (splits_with(GOOD) | bad, None):
        data = load(files, write, on_bad_image="skip")
        np.testing.assert_array_equal(data.train.x[:], [read_image(GOOD, None, 3)] * 2)
        assert [data.class_names[i] for i in data.train.label] == ["a", "z"]
        *_, line = capsys.readouterr().err.splitlines()
        (listed,) = (tmp_path / "cache").glob("*.bad.txt")
        path = f"{tmp_path}/images" + (".zip" if write is write_zip else "")
        assert line.startswith(
            f"{len(BAD)} of the {len(BAD) + 4} images of {path} cannot be used and are left out, "
            f"listed in {listed}; the first: {path}/train/b/16-bit RGB.png has 16 bits"
        )
        assert len(listed.read_text().splitlines()) == len(BAD)
    with pytest.raises(ValueError, match="16-bit RGB.png has 16 bits.*on_bad_image to skip"):
        load(None, write)


def test_colour_is_refused_where_grey_is_asked(load):
    with pytest.raises(
        ValueError, match="1.png is in colour, but one channel is wanted .config.data.channels"
    ):
        load(splits_with(GOOD), channels=1)


def test_a_file_that_cannot_be_opened_is_a_bad_image(load, tmp_path):
    (tmp_path / "images/train/a").mkdir(parents=True)
    (tmp_path / "images/train/a/link.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "images/train/a/pipe.png")
    with pytest.raises(ValueError, match="link.png is no file, or a link to none; "):
        load(splits_with(GOOD))
    assert len(load(splits_with(GOOD), on_bad_image="skip").train.x) == 1


@WRITERS
def test_a_huge_file_is_not_read(load, write, monkeypatch):
    monkeypatch.setattr(listings, "_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="1.png has 2000 bytes; an image has at most 1000"):
        load(splits_with(GOOD + bytes(2000 - len(GOOD))), write)


@pytest.mark.parametrize("name", ["../1.png", "train/../../1.png", "/etc/1.png", "C:\\1.png"])
def test_a_zip_that_reaches_out_of_its_folder_is_refused(load, name):
    with pytest.raises(ValueError, match="images.zip has an entry outside of its folder, .*1.png"):
        load(splits_with(GOOD) | {name: GOOD}, write_zip, on_bad_image="skip")


def test_a_zip_with_a_symbolic_link_is_refused(load):
    link = zipfile.ZipInfo("train/a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ValueError, match="images.zip has a symbolic link, train/a/link.png"):
        load(splits_with(GOOD) | {link: b"/etc/passwd"}, write_zip, on_bad_image="skip")


def damaged_zip(damage):
    def write(path, files):
        path = write_zip(path, files)
        with open(path, "rb") as file:
            whole = bytearray(file.read())
        damage(whole)
        with open(path, "wb") as file:
            file.write(whole)
        return path

    return write


def encrypt(raw):
    raw[raw.rfind(b"PK\1\2") + 8] |= 1  # the last entry's flag in the central directory


def break_entry(raw):
    raw[60:80] = bytes(20)


@pytest.mark.parametrize(
    "damage, message",
    [
        (encrypt, "images.zip is encrypted .*; unpack it and set config.data.path to the folder"),
        (lambda raw: raw.__delitem__(slice(-30, None)), "images.zip is no folder and no zip, or a"),
        (lambda raw: raw.clear(), "images.zip is no folder and no zip, or a"),
        (break_entry, "images.zip/train/a/1.png cannot be read .*; mend or remove it"),
    ],
)
def test_an_encrypted_or_broken_zip_is_named(load, damage, message):
    with pytest.raises(ValueError, match=message):
        load(splits_with(GOOD), damaged_zip(damage))


@pytest.mark.parametrize(
    "files, message",
    [
        ({"notes.txt": b"x"}, "images holds no images .*; set config.data.path"),
        ({"train/a/1.png": GOOD, "extra/1.png": GOOD}, "but extra/1.png is in none of train, "),
        ({"train/a/1.png": GOOD, "1.png": GOOD}, "but 1.png is in none of train, "),
        (splits_with(GOOD, **{"train/2.png": GOOD}), "train/2.png is in no class's folder"),
        ({"a/1.png": GOOD, "2.png": GOOD}, "2.png is in no class's folder"),
        ({"val/1.png": GOOD, "test/1.png": GOOD}, "no train images among the 2 of .*; add some"),
        (
            {"train/1.png": GOOD, "test/1.png": GOOD},
            "no validation images among the 2 of .*set config.data.validation_fraction higher",
        ),
        (
            {"train/1.png": b"", "val/1.png": GOOD, "test/1.png": GOOD},
            "no train images among the 2 of",
        ),
        ({"train/1.png": b"", "val/1.png": b""}, "train/1.png is no image of a format among"),
    ],
)
def test_a_layout_that_cannot_be_used_is_explained(load, files, message):
    with pytest.raises(ValueError, match=message):
        load(files, on_bad_image="skip")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"path": ""}, ValueError, "config.data.path is not set"),
        ({"path": "/nowhere"}, FileNotFoundError, "there is no /nowhere; set config.data.path"),
        ({"channels": 4}, ValueError, "config.data.channels is 4; set it to 3 or 1"),
        ({"on_bad_image": "ask"}, ValueError, "config.data.on_bad_image is 'ask'; set it to error"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            ValueError,
            "are 0.5 and 0.5; they must leave some images for training",
        ),
    ],
)
def test_options_that_cannot_work_are_named(options, error, message):
    with pytest.raises(error, match=message):
        folder(**options)


def test_a_cache_that_cannot_be_written_is_named_before_anything_else_is_said(
    load, tmp_path, capsys
):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        OSError, match="cannot be made or read .*; set config.data.cache to another"
    ):
        load(splits_with(GOOD))
    assert capsys.readouterr().err == ""


def test_a_lost_list_of_bad_images_moves_no_label(load, tmp_path):
    """The first image is bad: without the list each of the others would have its neighbour's label."""
    load({"a/0.png": b""} | many(60, 1), on_bad_image="skip")
    (listed,) = (tmp_path / "cache").glob("*.bad.txt")
    listed.unlink()
    data = load(None, on_bad_image="skip")
    for split in (data.train, data.validation, data.test):
        np.testing.assert_array_equal(split.label, [i % 3 for i in _in_order(split)])
