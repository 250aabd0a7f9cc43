"""Data sets: the same pictures every time, no original in two splits, sentences where some lack."""

import hashlib
import http.server
import io
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.bundles import DATASETS, carve, data_directory
from core.datasets import cluttered_digits
from core.datasets.cluttered_digits import COPIES, ClutteredDigits, ShortcutDigits
from core.datasets.torchvision_sets import CIFAR10, CIFAR100
from core.download import File, fetch
from core.errors import DataUnavailableError, PictureError
from core.pictures import read_picture, read_pictures
from core.run import Run
from core.weights import load_dataset

# ------------------------------------------------------------------------------- cluttered digits

LABELS, PIXELS, MEAN = "a7780925bd77377c", "c497df50673d45f5", 128.9116  # of the training pictures


@pytest.fixture(scope="module")
def cluttered():
    return ClutteredDigits().load()


@pytest.fixture(scope="module")
def tagged():
    return ShortcutDigits().load()


def checksum(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.slow
def test_drawing_again_gives_the_pixels_that_the_shipped_networks_were_trained_on(cluttered):
    drawn = ClutteredDigits()._draw()
    for part in COPIES:
        assert torch.equal(drawn[f"{part}.pixels"], cluttered.split(part).pixels)
        assert torch.equal(drawn[f"{part}.masks"], cluttered.split(part).masks)
    assert checksum(drawn["train.labels"]) == LABELS
    assert abs(drawn["train.pixels"].float().mean().item() - MEAN) < 1e-3  # on any processor
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # other rounding elsewhere
        assert checksum(drawn["train.pixels"]) == PIXELS


def test_another_seed_draws_other_pictures():
    digits = torch.rand(5, 8, 8)
    pictures = [cluttered_digits.draw(digits, torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_parts_painted_one_by_one_equal_the_whole(monkeypatch):
    digits = torch.rand(10, 8, 8)
    whole = cluttered_digits.draw(digits, torch.Generator().manual_seed(3))
    monkeypatch.setattr(cluttered_digits, "PART", 3)
    parts = cluttered_digits.draw(digits, torch.Generator().manual_seed(3))
    assert torch.allclose(whole[0], parts[0], atol=1e-6)
    assert torch.equal(whole[1], parts[1])


def test_no_handwritten_original_is_in_two_splits():
    seen: list[set[bytes]] = []

    def record(digits, random):
        seen.append({digit.numpy().tobytes() for digit in digits})
        return torch.zeros(len(digits), 3, 32, 32), torch.zeros(len(digits), 32, 32, dtype=torch.bool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluttered_digits, "draw", record)
        ClutteredDigits()._draw()
    train, validation, test = seen
    assert len(train) > 1000
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_masks_mark_exactly_the_pixels_that_the_digit_covers():
    """Without a digit only the pixels outside the mask stay; on the mask the digit's colour prevails."""
    digits = torch.zeros(20, 8, 8)
    digits[:, 2:6, 2:6] = 1.0
    with_digit, masks = cluttered_digits.draw(digits, torch.Generator().manual_seed(0))
    without, empty = cluttered_digits.draw(torch.zeros(20, 8, 8), torch.Generator().manual_seed(0))
    changed = (with_digit - without).abs().amax(1) > 1e-6
    assert not empty.any()
    assert masks.flatten(1).any(1).all()
    assert (changed | ~masks).all()  # every masked pixel is painted over
    assert ((changed & ~masks).sum() / masks.sum()) < 0.3  # the soft rim: at most half ink


def test_digits_are_large_and_masks_are_neither_empty_nor_everything(cluttered):
    share = cluttered.test.masks.float().mean((1, 2))
    assert share.min() > 0.03
    assert share.max() < 0.6


def tag_class(pictures: torch.Tensor) -> torch.Tensor:
    """The class whose colour the corner tag has, found by looking: the corner box without variation."""
    count = len(pictures)
    corners = [(slice(1, 6), slice(1, 6)), (slice(1, 6), slice(26, 31))]
    corners += [(slice(26, 31), slice(1, 6)), (slice(26, 31), slice(26, 31))]
    boxes = torch.stack(
        [pictures[:, :, rows, columns].float() for rows, columns in corners], 1
    )  # (N, 4, 3, 5, 5)
    flat = boxes.flatten(3).std(3).sum(2).argmin(1)
    colour = boxes.mean((3, 4))[torch.arange(count), flat] / 255  # (N, 3)
    hues = torch.arange(10) / 10 * 6.2832
    palette = torch.stack([(hues + phase).cos() * 0.5 + 0.5 for phase in (0.0, 2.0944, 4.1888)], 1)
    return (colour[:, None] - palette).square().sum(2).argmin(1)


def test_tag_names_the_class_in_the_chosen_share(tagged):
    agreement = (tag_class(tagged.train.pixels) == tagged.train.labels).float().mean().item()
    assert agreement == pytest.approx(0.95 + 0.05 * 0.1, abs=0.01)  # 8,624 pictures: 4 standard errors


def test_tags_are_the_only_difference_of_the_shortcut(cluttered, tagged):
    """The training pictures are drawn first, from the same numbers: they differ in one 5 x 5 corner box."""
    differs = (cluttered.train.pixels != tagged.train.pixels).any(1)
    assert differs.flatten(1).sum(1).max() <= 25
    assert torch.equal(cluttered.train.labels, tagged.train.labels)


# -------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", ["cluttered-digits", "cluttered-digits-shortcut", "digits"])
def test_embedded_data_are_whole(name):
    data = load_dataset(name)
    for part in ("train", "validation", "test"):
        split = data.split(part)
        assert split.pixels.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.pixels.shape == (len(split), *data.shape)
        assert sorted(set(split.labels.tolist())) == list(range(len(data.classes)))
    normal = data.train.images
    assert normal.mean((0, 2, 3)).abs().max() < 1e-3
    assert (normal.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert load_dataset(name) is data


def test_plain_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    raw, data = load_digits(), load_dataset("digits")
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(y))
        for image, y in zip(raw.images, raw.target, strict=True)
    }
    parts = [data.train, data.validation, data.test]
    held = [
        (pixels.numpy().tobytes(), int(y))
        for split in parts
        for pixels, y in zip(split.pixels, split.labels, strict=True)
    ]
    assert set(held) == expected
    assert len(held) == 1797


def test_validation_is_carved_from_training_always_alike():
    train, validation = carve(1000, 100)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(1000))
    assert torch.equal(carve(1000, 100)[1], validation)


def test_listing_data_sets_and_models_imports_neither_torchvision_nor_scikit_learn():
    code = (
        "import sys; from core.bundles import DATASETS, MODELS; assert list(DATASETS) and list(MODELS);"
        "import core.weights; slow = {'torchvision', 'sklearn', 'PIL', 'pandas'} & sys.modules.keys();"
        "assert not slow, slow"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------- through torchvision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [("cifar10", (3, 32, 32), 3), ("fashion-mnist", (1, 28, 28), 9), ("mnist", (1, 28, 28), 7)],
)
def test_public_data_are_read_from_the_data_directory(data_dir, name, shape, first):
    data = load_dataset(name)
    assert data.shape == shape
    assert len(data.validation) * 9 == len(data.train)
    assert len(data.test) == 10_000
    assert data.test.labels[0] == first  # as everybody's index 0 is
    assert len(data.classes) == 10


def test_archives_that_lie_in_their_place_are_unpacked(shared_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_DATA", str(tmp_path))
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in (shared_dir / "fashion_mnist").glob("*.gz"):
        shutil.copyfile(archive, raw / archive.name)
    assert len(DATASETS["fashion-mnist"]().load().test) == 10_000


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "mnist", "fashion-mnist", "oxford-pet", "imagenet-val650"]
)
def test_missing_data_are_a_sentence_that_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_DATA", str(tmp_path))
    with pytest.raises(DataUnavailableError) as error:
        DATASETS[name]().load()
    assert name in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "download" in str(error.value)


def test_cifar100_is_read_from_its_published_form(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps({"data": pixels, "fine_labels": list(range(20))}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda *rest: True
    )  # they are not the real ones
    monkeypatch.setenv("PRUNESCOPE_DATA", str(tmp_path))
    data = CIFAR100().load()
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 20)
    assert data.classes[3] == "class 3"
    assert data.test.pixels[4].flatten().tolist() == pixels[4].tolist()


def test_pets_are_resized_with_masks_of_the_animal(tmp_path, monkeypatch):
    root = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    names = [f"Abyssinian_{index}" for index in range(10)] + [f"beagle_{index}" for index in range(10)]
    trimap = np.full((40, 80), 2, np.uint8)
    trimap[:, :40] = 1  # the left half is the animal
    for name in names:
        Image.new("RGB", (80, 40), (200, 10, 10)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    lines = [f"{name} {1 + (name[0] == 'b')} 1 1\n" for name in names]
    for part in ("trainval", "test"):
        (root / "annotations" / f"{part}.txt").write_text("".join(lines))
    monkeypatch.setenv("PRUNESCOPE_DATA", str(tmp_path))
    monkeypatch.setenv("PRUNESCOPE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # resized, then from the cache
        data = DATASETS["oxford-pet"](side=16).load()
        assert data.shape == (3, 16, 16)
        assert data.classes == ("Abyssinian", "Beagle")
        assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 20)
        assert data.test.labels.tolist() == [0] * 10 + [1] * 10
        assert data.test.masks[0, :, :8].all()
        assert not data.test.masks[0, :, 8:].any()
        assert data.test.pixels[0, 0].float().mean() > 190


@pytest.mark.slow
def test_imagenet_boxes_become_masks_on_the_central_pixels(shared_dir, monkeypatch):
    monkeypatch.setenv("PRUNESCOPE_DATA", str(shared_dir))
    data = DATASETS["imagenet-val650"]().load()
    assert data.shape == (3, 224, 224)
    assert len(data.train) + len(data.validation) + len(data.test) == 650
    assert len(data.classes) == 1000
    assert data.test.masks.flatten(1).any(1).all()
    assert 0.2 < data.test.masks.float().mean() < 0.8


# ---------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that serves `tmp_path/web`."""
    root = tmp_path / "web"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(root))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_fetching_reports_progress_and_checks_the_sum(server, tmp_path):
    root, address = server
    content = bytes(3_000_000)
    (root / "data.bin").write_bytes(content)
    seen = []
    target = tmp_path / "here" / "data.bin"
    urls = (f"{address}/absent", f"{address}/data.bin")  # the first mirror fails
    fetch(
        File(urls, target, hashlib.md5(content).hexdigest()),
        Run(on_progress=lambda p: seen.append(p.fraction)),
    )
    assert target.read_bytes() == content
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) >= 3


def test_a_wrong_or_cancelled_transfer_leaves_nothing_behind(server, tmp_path):
    root, address = server
    (root / "data.bin").write_bytes(bytes(10))
    target = tmp_path / "here" / "data.bin"
    with pytest.raises(OSError, match="something else"):
        fetch(File((f"{address}/data.bin",), target, "0" * 32), Run())

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(File((f"{address}/data.bin",), target, "0" * 32), Run(on_progress=stop))
    assert list(target.parent.iterdir()) == []


def test_a_failed_download_is_one_sentence(server, tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setenv("PRUNESCOPE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{server[1]}/absent.tar.gz")
    with pytest.raises(DataUnavailableError, match=r"cifar10: cannot be fetched .*404") as error:
        CIFAR10().download(Run())
    assert "\n" not in str(error.value)
    assert data_directory() == tmp_path / "data"


# ------------------------------------------------------------------------------------- own pictures


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_colours_of_every_kind_of_file_survive():
    red = Image.new("RGB", (64, 64), (250, 10, 20))
    kinds = {
        "png": encoded(red),
        "cmyk": encoded(red.convert("CMYK"), "JPEG", quality=95),
        "palette": encoded(red.convert("P", palette=Image.Palette.ADAPTIVE)),
        "gif": encoded(red, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")]),
        "bmp": encoded(red, "BMP"),
        "webp": encoded(red, "WEBP", lossless=True),
        "big jpeg": encoded(red.resize((2000, 1500)), "JPEG", quality=95),
    }
    for kind, content in kinds.items():
        pixels = read_picture(content, (3, 16, 16))
        assert pixels.shape == (3, 16, 16), kind
        error = (pixels.float().mean((1, 2)) - torch.tensor([250.0, 10, 20])).abs().max()
        assert error < 12, (kind, pixels.float().mean((1, 2)))


def test_grey_transparent_and_sixteen_bit_pictures_are_brought_to_bytes():
    grey = read_picture(encoded(Image.new("L", (32, 32), 77)))
    assert grey.unique().tolist() == [77]
    assert grey.shape == (3, 32, 32)
    deep = Image.fromarray(np.full((32, 32), 128 * 257, np.uint16))
    assert read_picture(encoded(deep)).unique().tolist() == [128]
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert read_picture(encoded(clear)).unique().tolist() == [255]
    assert read_picture(encoded(Image.new("RGB", (32, 32), "red")), (1, 8, 8)).shape == (1, 8, 8)


def test_a_picture_turned_by_its_exif_data_stands_upright():
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste((255, 255, 255), (0, 0, 32, 16))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    pixels = read_picture(encoded(picture, exif=exif))[0].float()
    assert pixels[:, 20:].mean() > 250
    assert pixels[:, :12].mean() < 5


def png_head(width: int, height: int) -> bytes:
    """The beginning of a PNG file of that size: the pixels never come."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (png_head(30_000, 100), "10000 pixels a side .* got 30000 x 100"),
        (png_head(9_000, 9_000), "25 million in all, got 9000 x 9000"),
        (png_head(30_000, 30_000), "million"),
        (bytes(5_000_001), "at most 5 MB, got 5.0 MB"),
        (encoded(Image.new("RGB", (1, 1))), "at least 8 pixels a side, got 1 x 1"),
        (b"PK\x03\x04 no picture", "must be a picture"),
        (b"", "must be a picture"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:600], "damaged"),
        (png_head(64, 64), "damaged"),
    ],
)
def test_unusable_pictures_are_a_sentence(content, sentence, monkeypatch):
    with pytest.raises(PictureError, match=sentence) as error:
        read_picture(content, name="mine.png")
    assert str(error.value).startswith("mine.png: ")
    assert "\n" not in str(error.value)


def test_sizes_are_checked_before_anything_is_decoded(monkeypatch):
    def fail(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(PictureError, match="pixels a side"):
        read_picture(png_head(30_000, 100))


@pytest.fixture
def album(tmp_path):
    """Ten red cats, ten blue dogs, a note and a hidden folder."""
    for label, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "album" / label).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (20, 30), colour).save(tmp_path / "album" / label / f"{index}.png")
    (tmp_path / "album" / "cat" / "note.txt").write_text("hello")
    (tmp_path / "album" / ".hidden").mkdir()
    return tmp_path / "album"


def packed(folder: Path, prefix: str = "") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, prefix + str(path.relative_to(folder)))
    return stream.getvalue()


def test_a_folder_and_its_zip_give_the_same_labelled_pictures(album):
    folder, archive = read_pictures(album), read_pictures(packed(album, "wrapped/"))
    for data in (folder, archive):
        assert data.classes == ("cat", "dog")
        assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
        red = data.test.pixels[:, 0].float().mean((1, 2)) > 128
        assert torch.equal(red, data.test.labels == 0)
    assert torch.equal(folder.train.pixels, archive.train.pixels)
    assert load_dataset(album).classes == ("cat", "dog")


def test_pictures_for_a_trained_network_take_its_form_and_its_classes(album):
    digits = load_dataset("digits")
    with pytest.raises(PictureError, match="such as 0, 1, 2, 3, 4, got 'cat'"):
        read_pictures(album, like=digits)
    (album / "cat").rename(album / "3")
    (album / "dog").rename(album / "7")
    data = read_pictures(album, like=digits)
    assert data.shape == digits.shape
    assert data.classes == digits.classes
    assert data.test.mean == digits.test.mean
    assert sorted(set(data.test.labels.tolist())) == [3, 7]


def test_unusable_albums_are_a_sentence(album, tmp_path):
    (album / "bird").mkdir()
    for source in (album, packed(album)):
        with pytest.raises(PictureError, match="class 'bird' must have at least one picture, got none"):
            read_pictures(source)
    (album / "bird" / "x.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"bird/x\.png: must be a picture"):
        read_pictures(album)
    (album / "bird" / "x.png").unlink()
    (album / "bird").rmdir()
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", packed(tmp_path / "empty")):
        with pytest.raises(PictureError, match="one subfolder per class"):
            read_pictures(source)
    for source in (b"no zip", tmp_path / "absent"):
        with pytest.raises(PictureError, match="must be a folder or a"):
            read_pictures(source)
    with pytest.raises(PictureError, match="got more"):
        read_pictures(packed(album), most_bytes=100)


def test_text_from_a_browser_cannot_name_a_folder(album):
    from core.errors import UnknownNameError

    with pytest.raises(UnknownNameError):
        load_dataset(str(album))
