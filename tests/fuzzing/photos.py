"""Cases of `--photos` and `--auto-mask`: folders of photographs, videos, masks, scenes and networks, spoilt."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

import run
from tests.fuzzing import scenes, spoil
from tests.process_data.onnx_file import write_onnx

SIZE = (96, 72)


def write_photos(folder: Path, count: int = 5) -> None:
    """Photographs of two textured planes, from cameras side by side."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    textures = [cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    for i in range(count):
        flat = np.array([[1, 0.02 * i, -40 - 9.0 * i], [0.01 * i, 1, -30], [1e-4 * i, 0, 1]])
        near = np.array([[0.8, 0.01 * i, -30 - 18.0 * i], [0, 0.8, 15], [2e-4 * i, 0, 1]])
        picture = cv2.warpPerspective(textures[0], flat, SIZE)
        front = cv2.warpPerspective(textures[1], near, SIZE)
        picture[40:] = front[40:]
        PIL.Image.fromarray(picture).save(folder / f"{i}.jpg", quality=95)


def write_video(path: Path, photos: Path) -> None:
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-nostdin",
        "-framerate",
        "5",
        "-i",
        str(photos / "%d.jpg"),
        "-pix_fmt",
        "yuv420p",
        str(path),
    ]
    subprocess.run(command, check=True)


def _exif(path: Path, rng: random.Random) -> str:
    """Damaged or strange EXIF."""
    exif = PIL.Image.Exif()
    with PIL.Image.open(path) as image:
        exif[274], exif[272] = rng.choice([(6, "x"), (0, ""), (9, "x" * 5000), (3, "a\nb"), (65535, "ü")])
        image.save(path, exif=exif)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([0, 3, 20])):
        data[rng.randrange(12, 60)] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))
    return f"{path.name}: EXIF"


def _folder(photos: Path, rng: random.Random, box: Path) -> str:
    """The folder as a whole."""
    files = sorted(photos.glob("*.jpg"))
    ways = "one,none,gone,a file,same,same pixels,grey,text,nested,deep,loop,hidden,other suffix,same name,outside,many"
    how = rng.choice(ways.split(","))
    if how in ("one", "none"):
        for path in files[how == "one" :]:
            path.unlink()
    elif how in ("gone", "a file"):
        shutil.rmtree(photos)
        how == "gone" or photos.write_text("x")
    elif how in ("same", "same pixels", "grey", "text"):
        for i, path in enumerate(files):
            if how == "same":
                path.write_bytes(files[0].read_bytes())
            elif how == "text":
                path.write_text(f"photograph {i}")
            else:
                image = PIL.Image.open(files[0]) if how == "same pixels" else PIL.Image.new("RGB", SIZE, (99, 99, 99 + i))
                image.copy().save(path, quality=90 + i)
    elif how in ("nested", "deep"):
        inner = photos / ("more" if how == "nested" else "/".join("abcdefgh"))
        inner.mkdir(parents=True)
        for path in files[2 if how == "nested" else 0 :]:
            shutil.move(path, inner / path.name)
    elif how == "loop":
        os.symlink(photos, photos / "again")
        os.symlink("x.jpg", photos / "x.jpg")
    elif how == "hidden":
        for path in files:
            shutil.move(path, photos / f".{path.name}")
    elif how == "other suffix":
        for path, suffix in zip(files, (".heic", ".tif", ".webp", ".PNG", ".bmp")):
            shutil.move(path, path.with_suffix(suffix))
    elif how == "same name":
        for i, path in enumerate(files):
            shutil.move(path, photos / ("a" + " " * i + " b" + "#" * (i % 2) + ".jpg"))
    elif how == "outside":
        for path in files[:3]:
            path.unlink()
            os.symlink(rng.choice([box / "sentinel/a.txt", "/dev/zero", "/etc/passwd"]), path)
    else:
        for i in range(60):
            (photos / f"n{i}.jpg").write_bytes(b"\xff\xd8\xff" + bytes([i]))
    return how


def _video(given: Path, sources: Path, rng: random.Random, box: Path) -> tuple[Path, str]:
    """A video that is spoilt or none."""
    path = given / rng.choice(["v.mp4", "v.mov", "v.avi", "a%db.mp4", "-i.mp4"])
    shutil.copy(sources / "photos.mp4", path)
    how = rng.choice(["whole", "bytes", "bytes", "entry", "text", "list", "photograph", "playlist"])
    if how == "bytes":
        how = spoil.spoil_bytes(path, rng)
    elif how == "entry":
        how = spoil.spoil_entry(path, rng, box / "sentinel/a.txt", [path])
    elif how == "photograph":
        shutil.copy(sources / "photos/0.jpg", path)
    elif how != "whole":
        texts = {
            "text": "no video",
            "list": f"ffconcat version 1.0\nfile '{box}/sentinel/a.txt'\n",
            "playlist": "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        }
        path.write_text(texts[how])
    return path, f"{path.name}: {how}"


def _masks(masks: Path, photos: Path, rng: random.Random, box: Path) -> str:
    """Masks of the photographs, of which something is wrong."""
    masks.mkdir()
    files = sorted(photos.glob("*.jpg"))
    how = rng.choice(["whole", "another size", "one is missing", "bytes", "entry", "image", "black", "none", "photographs"])
    size = (31, 47) if how == "another size" else SIZE
    mask = np.zeros(size[::-1], np.uint8)
    if how != "black":
        mask[20:60, 10:90] = 255
    for path in files:
        PIL.Image.fromarray(mask).save(masks / f"{path.stem}.png")
    one = masks / f"{rng.choice(files).stem}.png"
    if how == "one is missing":
        one.unlink()
    elif how == "bytes":
        return "masks: " + spoil.spoil_bytes(one, rng)
    elif how == "entry":
        return "masks: " + spoil.spoil_entry(one, rng, box / "sentinel/a.txt", [one])
    elif how == "image":
        return "masks: " + spoil.spoil_image(one, rng)
    elif how == "none":
        shutil.rmtree(masks)
    elif how == "photographs":
        shutil.rmtree(masks)
        shutil.copytree(photos, masks)
    return f"masks: {how}"


def _target(scene: Path, rng: random.Random, box: Path) -> str:
    """Something that lies where the scene is to be written."""
    how = rng.choice(["a file", "foreign images", "record", "record", "images is a link", "images is a file"])
    if how == "a file":
        scene.write_text("x")
    else:
        scene.mkdir()
        if how == "record":
            text = rng.choice(
                [
                    "{}",
                    "[",
                    "[" * 5000,
                    '{"signature": 3, "written": 4}',
                    '{"written": {"images/0.jpg": 5}, "photos": 7, "report": []}',
                    "\xff",
                ]
            )
            (scene / "sfm.json").write_bytes(text.encode("latin-1"))
            (scene / "sparse/0").mkdir(parents=True)
            rng.random() < 0.5 or (scene / "sparse/0/images.bin").write_text("x")
        elif how == "images is a link":
            os.symlink(box / "sentinel/deep", scene / "images")
        elif how == "foreign images":
            (scene / "images").mkdir()
            (scene / "images/mine.jpg").write_text("x")
        else:
            (scene / "images").write_text("x")
    return f"at the scene: {how}"


def photos(sources: Path, box: Path, rng: random.Random):
    """`--photos` of a folder or a video."""
    given = box / "given"
    given.mkdir()
    source, scene, more = given / "photos", box / "outputs/scene", []
    shutil.copytree(sources / "photos", source)
    way = rng.random()
    if way < 0.3:
        what = _folder(source, rng, box)
    elif way < 0.6:
        path = rng.choice(sorted(source.iterdir()))
        what = rng.choice(
            [
                spoil.spoil_bytes,
                spoil.spoil_image,
                spoil.spoil_image,
                _exif,
                lambda p, r: spoil.spoil_entry(p, r, box / "sentinel/a.txt", sorted(source.iterdir())),
            ]
        )(path, rng)
    elif way < 0.75:
        source, what = _video(given, sources, rng, box)
    elif way < 0.9:
        what = _masks(given / "masks", source, rng, box)
        more = ["--masks", str(given / "masks")]
    else:
        what = _target(scene, rng, box)
    if rng.random() < 0.05:
        scene, what = source / "scene", what + ", the scene within"
    return run.main, ["--photos", str(source), *more, f"dataset.root_dir={scene}"], what


def _network(path: Path, rng: random.Random, box: Path) -> str:
    """A file for `--mask-model`."""
    how = rng.choice(["whole", "bytes", "bytes", "bytes", "channels", "size", "entry", "text", "numbers", "rubbish"])
    size = rng.choice([(1, 1), (0, 0), (4000, 4000), (100_000, 100_000), (3, 500)]) if how == "size" else (16, 16)
    weight = rng.choice([float("nan"), 1e38, float("inf"), 0.0]) if how == "numbers" else 4.0
    write_onnx(path, [weight] * (6 if how == "channels" else 3), -2.0, size, 2 if how == "channels" else 1)
    if how == "bytes":
        return spoil.spoil_bytes(path, rng)
    if how == "entry":
        return spoil.spoil_entry(path, rng, box / "sentinel/a.txt", [path])
    if how in ("text", "rubbish"):
        path.write_bytes(b"hello" if how == "text" else rng.randbytes(400))
    return f"{path.name}: {how} {size if how == 'size' else ''}"


def masks(sources: Path, box: Path, rng: random.Random):
    """`--auto-mask` of a scene without masks, spoilt, or with a network that is."""
    given, more = box / "given", []
    given.mkdir()
    if rng.random() < 0.6:
        what = scenes.spoilt(sources, box, rng)
    else:
        layout = rng.choice(["dtu", "transforms", "colmap", "blender"])
        shutil.rmtree(box / "scene")
        shutil.copytree(sources / layout, box / "scene")
        what = layout
    if rng.random() < 0.9:
        for name in ("mask", "masks"):
            shutil.rmtree(box / "scene" / name, ignore_errors=True)
    if rng.random() < 0.5:
        path = given / rng.choice(["net.onnx", "net", "ü.onnx"])
        what += "; " + _network(path, rng, box)
        more = ["--mask-model", str(path), *rng.choice([[], ["--mask-norm", "unit"]])]
    return run.main, ["--auto-mask", *more, f"dataset.root_dir={box / 'scene'}"], what
