"""Inputs of networks that others trained, prepared as the packages that carry them prepare them.

One function a network: random numbers and materials in, one example by input name out. What is
made to judge on comes from other photographs, words and voices than what is made to fit on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime
from PIL import Image

from scripts.benchmarks import audio, photographs, text_images

Example: TypeAlias = dict[str, np.ndarray]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NSFW_MEAN = np.array((104.0, 117.0, 123.0), np.float32)  # BGR
MEL_FRAMES, NOTE_RATE, NOTE_SAMPLES = 76, 22_050, 43_844
CHUNK, CONTEXT = 512, 64  # samples of new sound and of old sound in a call of the voice detector
QUALITY_SAMPLES, QUALITY_MELS, QUALITY_WINDOW, QUALITY_HOP = 144_000, 120, 321, 160


@dataclass(frozen=True)
class Materials:
    """What inputs are made of.

    Attributes:
        folder: Folder that scripts/fetch_networks.py wrote.
        fresh: Whether they are the ones to judge on.
    """

    folder: Path
    fresh: bool

    @property
    def words(self) -> tuple[str, ...]:
        """Words of text and speech."""
        return text_images.words(self.folder, self.fresh)

    @property
    def photographs(self) -> tuple[Image.Image, ...]:
        """Photographs in RGB."""
        return photographs.photographs(self.folder, self.fresh)

    def page(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw a page of text with noise; bytes (size, size, 3)."""
        picture = text_images.page(rng, self.folder, self.words, size)
        return photographs.noisy(rng, photographs.coloured(rng, picture), rng.uniform(0, 15))

    def speech(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        """Speak; float32 (samples,) at 16 kHz."""
        return audio.speech(rng, self.folder, self.words, samples, self.fresh)


def channels_first(pixels: np.ndarray, mean: object, std: object) -> np.ndarray:
    """Scale bytes (H, W, C) to 0..1, normalise, and put channels first."""
    x = (np.asarray(pixels, np.float32) / 255 - np.asarray(mean)) / np.asarray(std)
    return np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)


def opennsfw(rng: np.random.Generator, materials: Materials) -> Example:
    """A photograph, most of the time with smooth shapes of the colours of skin; BGR less a mean."""
    picture = photographs.crop(rng, materials.photographs, 224)
    if rng.random() < 0.6:
        picture = photographs.smooth_shapes(rng, picture)
    pixels = photographs.noisy(rng, picture, rng.uniform(0, 10))
    return {"input:0": pixels[..., ::-1].astype(np.float32) - NSFW_MEAN}


def orientation(rng: np.random.Generator, materials: Materials) -> Example:
    """A part of a page, noisy, turned by a multiple of a right angle, which is the label ``y``."""
    size, quarter = int(rng.integers(80, 225)), int(rng.integers(4))
    left, top = rng.integers(256 - size, size=2)
    part = Image.fromarray(materials.page(rng, 256)[top : top + size, left : left + size])
    pixels = photographs.noisy(rng, part.resize((224, 224)), rng.uniform(0, 50))
    return {
        "x": channels_first(np.rot90(pixels, quarter), IMAGENET_MEAN, IMAGENET_STD),
        "y": np.int64(-quarter % 4),
    }


@cache
def characters(folder: Path) -> dict[str, int]:
    """Give the class of each character that PP-OCRv4 reads; 0 is the blank, the last is " "."""
    session = onnxruntime.InferenceSession(folder / "text_recognition.onnx")
    names = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    return {name: number for number, name in enumerate(names, 1)}


def text_recognition(rng: np.random.Generator, materials: Materials) -> Example:
    """A line of text, BGR, 48 pixels high, padded to a width of 320.

    The label ``y`` holds the classes of its characters but for " ", filled up with -1.
    """
    pixels, text = text_images.line(rng, materials.folder, materials.words, 320, 48)
    x, y = np.zeros((3, 48, 320), np.float32), np.full(40, -1)
    x[..., : pixels.shape[1]] = channels_first(pixels[..., ::-1], 0.5, 0.5)
    classes = [characters(materials.folder)[character] for character in text.replace(" ", "")]
    y[: len(classes)] = classes
    return {"x": x, "y": y}


def text_mask(rng: np.random.Generator, materials: Materials) -> Example:
    """A page or words on a photograph, BGR."""
    pixels = materials.page(rng, 320) if rng.random() < 0.5 else scattered(rng, materials, 320)
    return {"x": channels_first(pixels[..., ::-1], 0.5, 0.5)}


def scattered(rng: np.random.Generator, materials: Materials, size: int) -> np.ndarray:
    """Draw words on a photograph; bytes (size, size, 3)."""
    return text_images.scattered(
        rng, materials.folder, materials.words, materials.photographs, size
    )


def captcha(rng: np.random.Generator, materials: Materials) -> Example:
    """A short text, grey, 64 pixels high."""
    pixels, _ = text_images.line(rng, materials.folder, materials.words, 192, 64)
    grey = Image.fromarray(pixels).convert("L").resize((192, 64))
    return {"input1": np.asarray(grey, np.float32)[None] / 255}


def text_boxes(rng: np.random.Generator, materials: Materials) -> Example:
    """Words and characters on a photograph, or a page; bytes as numbers, BGR."""
    pixels = scattered(rng, materials, 416) if rng.random() < 0.8 else materials.page(rng, 416)
    return {"images": channels_first(pixels[..., ::-1], 0, 1 / 255)}


def nudenet(rng: np.random.Generator, materials: Materials) -> Example:
    """A photograph, RGB; four of five show people."""
    people = photographs.photographs(materials.folder, materials.fresh, people=True)
    sources = people if rng.random() < 0.8 else materials.photographs
    pixels = photographs.noisy(rng, photographs.crop(rng, sources, 320), rng.uniform(0, 10))
    return {"images": channels_first(pixels, 0, 1)}


@cache
def mel_session(folder: Path) -> onnxruntime.InferenceSession:
    """Open the network that makes mel spectrograms."""
    return onnxruntime.InferenceSession(folder / "melspectrogram.onnx")


def speech_embedding(rng: np.random.Generator, materials: Materials) -> Iterator[Example]:
    """Mel spectrograms of 76 frames, one after another, of four seconds of speech."""
    sound = materials.speech(rng, 4 * audio.RATE) * 32767
    (spectrum,) = mel_session(materials.folder).run(None, {"input": sound[None]})
    frames = (spectrum.reshape(-1, 32)[..., None] / 10 + 2).astype(np.float32)
    for start in range(0, len(frames) - MEL_FRAMES + 1, MEL_FRAMES):
        yield {"input_1": frames[start : start + MEL_FRAMES]}


def speech_quality(rng: np.random.Generator, materials: Materials) -> Example:
    """A logarithmic mel spectrogram of nine seconds of speech."""
    sound = materials.speech(rng, QUALITY_SAMPLES)
    return {"input_1": audio.log_mel(sound, QUALITY_MELS, QUALITY_WINDOW, QUALITY_HOP)}


@cache
def voice_session(folder: Path) -> onnxruntime.InferenceSession:
    """Open the voice detector."""
    return onnxruntime.InferenceSession(folder / "voice_activity.onnx")


def voice_activity(rng: np.random.Generator, materials: Materials) -> Iterator[Example]:
    """Pieces of speech with the state that the network was in; a sound gives many examples."""
    sound = materials.speech(rng, 4 * audio.RATE)
    state, rate = np.zeros((2, 1, 128), np.float32), np.int64(audio.RATE)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    for start in range(0, len(sound) - CHUNK + 1, CHUNK):
        piece = padded[None, start : start + CONTEXT + CHUNK]
        yield {"input": piece[0], "state": state[:, 0]}
        feeds = {"input": piece, "state": state, "sr": np.asarray(rate)}
        _, state = voice_session(materials.folder).run(None, feeds)


def notes(rng: np.random.Generator, materials: Materials) -> Example:
    """Two seconds of notes."""
    sound = audio.melody(rng, NOTE_SAMPLES, NOTE_RATE)
    return {"serving_default_input_2:0": sound[:, None]}


def pitch(rng: np.random.Generator, materials: Materials) -> Example:
    """A second of speech or notes."""
    sung = rng.random() < 0.5
    sound = audio.melody(rng, 16_000, 16_000) if sung else materials.speech(rng, 16_000)
    return {"audio": sound}
