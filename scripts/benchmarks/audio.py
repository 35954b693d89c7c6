"""Sounds: speech by eSpeak NG, and tones; other words, voices and notes to fit than to judge."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from scipy import signal

RATE = 16_000  # samples a second of all speech
SYNCHRONOUS, UTF8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8 in speak_lib.h
RATE_PARAMETER, PITCH, RANGE = 1, 3, 4  # espeakRATE, espeakPITCH, espeakRANGE
FIT_VOICES = ("en-us", "en-gb", "de", "fr", "it", "nl", "en-us+f2", "en-gb+m3", "es+f4")
FRESH_VOICES = ("en-029", "es", "pt", "sv", "pl", "en-us+f3", "en-gb+m4", "de+f1")
Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Speaker:
    """eSpeak NG as a library: text in, samples out."""

    def __init__(self, folder: Path) -> None:
        """Load the library and its data from ``folder``/espeak."""
        self._library = ctypes.CDLL(str(folder / "espeak" / "libespeak-ng.so"))
        path = str((folder / "espeak").resolve()).encode()
        self._rate = self._library.espeak_Initialize(SYNCHRONOUS, 500, path, 0)
        self._blocks: list[np.ndarray] = []
        self._callback = Callback(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: int | None) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, words_a_minute: int, pitch: int) -> np.ndarray:
        """Speak; float32 samples in -1..1 at ``RATE``."""
        self._library.espeak_SetVoiceByName(voice.encode())
        for parameter, value in ((RATE_PARAMETER, words_a_minute), (PITCH, pitch), (RANGE, 60)):
            self._library.espeak_SetParameter(parameter, value, 0)
        spoken = text.encode()
        self._blocks = []
        self._library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, UTF8, None, None)
        sound = np.concatenate(self._blocks).astype(np.float32) / 32768
        return np.asarray(signal.resample_poly(sound, RATE, self._rate), np.float32)


@cache
def speaker(folder: Path) -> Speaker:
    """Load the library, once in a process."""
    return Speaker(folder)


def speech(
    rng: np.random.Generator, folder: Path, vocabulary: tuple[str, ...], count: int, fresh: bool
) -> np.ndarray:
    """Speak random words with pauses, in a random voice, with noise and an echo at random.

    Args:
        rng: Random numbers.
        folder: Folder of the networks.
        vocabulary: Words.
        count: Samples of the result, at ``RATE``.
        fresh: Whether the voices are those to judge on.

    Returns:
        float32 (count,) in -1..1.
    """
    voices = FRESH_VOICES if fresh else FIT_VOICES
    voice, rate = voices[rng.integers(len(voices))], int(rng.integers(120, 220))
    sound = np.zeros(int(rng.integers(RATE // 2)), np.float32)
    while len(sound) < count:
        text = " ".join(vocabulary[n] for n in rng.integers(len(vocabulary), size=4))
        spoken = speaker(folder).say(text, voice, rate, int(rng.integers(20, 80)))
        pause = np.zeros(int(rng.integers(RATE // 20, RATE)), np.float32)
        sound = np.concatenate([sound, spoken, pause])
    return spoiled(rng, sound[:count])


def spoiled(rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
    """Add an echo, noise of a random colour and loudness, and clip, each at random."""
    if rng.random() < 0.4:
        length = int(rng.uniform(0.05, 0.4) * RATE)
        echo = rng.standard_normal(length) * np.exp(-6 * np.arange(length) / length)
        echo[0] = 10 * rng.uniform(0.5, 2)
        sound = signal.fftconvolve(sound, echo / np.abs(echo).sum() * 3)[: len(sound)]
    if rng.random() < 0.8:
        noise = rng.standard_normal(len(sound))
        noise = signal.lfilter([1], [1, -rng.uniform(0, 0.97)], noise)
        level = np.sqrt(np.mean(sound**2) / np.mean(noise**2))
        sound = sound + noise * level * 10 ** (-rng.uniform(-5, 40) / 20)
    loudness = rng.uniform(0.05, 1) / max(float(np.abs(sound).max()), 1e-6)
    if rng.random() < 0.15:
        loudness *= 4
    return np.clip(sound * loudness, -1, 1).astype(np.float32)


def melody(rng: np.random.Generator, count: int, rate: int) -> np.ndarray:
    """Play random notes of several harmonics, one to three at a time, that fade.

    Args:
        rng: Random numbers.
        count: Samples of the result.
        rate: Samples a second.

    Returns:
        float32 (count,) in -1..1.
    """
    sound, time = np.zeros(count), np.arange(count) / rate
    for _ in range(rng.integers(1, 4)):
        start = rng.uniform(0, 0.3)
        while start < time[-1]:
            length, fall = rng.uniform(0.1, 0.8), rng.uniform(1, 6)
            frequency = 440 * 2 ** ((rng.integers(36, 85) - 69 + rng.normal(0, 0.05)) / 12)
            inside = slice(int(start * rate), min(int((start + length) * rate), count))
            t = time[inside] - start
            tone = sum(
                rng.uniform(0.2, 1) / n**1.3 * np.sin(2 * np.pi * n * frequency * t)
                for n in range(1, int(rng.integers(3, 9)))
                if n * frequency < rate / 2
            )
            sound[inside] += tone * np.exp(-fall * t) * np.minimum(t / 0.005, 1)
            start += length * rng.uniform(0.6, 1.5)
    return spoiled(rng, sound.astype(np.float32))


def log_mel(sound: np.ndarray, mels: int, window: int, hop: int) -> np.ndarray:
    """Compute a mel spectrogram in decibels below its maximum, scaled as DNSMOS takes it.

    It is that of librosa's ``melspectrogram`` and ``power_to_db`` with their defaults.

    Returns:
        float32 (frames, mels), from -1 to 1.
    """
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, window // 2), window)[::hop]
    shape = signal.windows.hann(window, sym=False)
    power = np.square(np.abs(np.fft.rfft(frames * shape))) @ mel_filters(mels, window).T
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    return np.asarray((np.maximum(decibels - decibels.max(), -80) + 40) / 40, np.float32)


def mel_filters(mels: int, window: int) -> np.ndarray:
    """Make triangular filters (mels, bins) on Slaney's scale: linear to 1 kHz, then logarithmic."""
    octave = np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / octave
    steps = np.linspace(0, top, mels + 2)
    edges = np.where(steps < 15, steps * 200 / 3, 1000 * np.exp(octave * (steps - 15)))
    distance = np.fft.rfftfreq(window, 1 / RATE) - edges[:, None]
    widths = np.diff(edges)[:, None]
    rising, falling = distance[:-2] / widths[:-1], -distance[2:] / widths[1:]
    filters = np.clip(np.minimum(rising, falling), 0, None)
    return np.asarray(filters * 2 / (edges[2:] - edges[:-2])[:, None])
