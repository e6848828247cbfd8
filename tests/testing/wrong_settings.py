"""Retrievers that set something of the process at every call, to the same value, and never put it back."""

import gc
import logging
import os
import signal
import sys
import warnings
from typing import Any

import numpy as np

from tests.testing.right_retriever import Right


class Sets(Right):
    """Before each build."""

    def build_vectors(self, vectors: Any) -> None:
        self.set()
        super().build_vectors(vectors)

    def set(self) -> None:
        raise NotImplementedError


class SetsTheEnvironment(Sets):
    def set(self) -> None:
        os.environ["MY_INDEX_WIDTH"] = "32"


class SetsASignal(Sets):
    def set(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class SetsNumpysErrors(Sets):
    def set(self) -> None:
        np.seterr(all="ignore")


class SetsTheFolder(Sets):
    def set(self) -> None:
        os.chdir("/")


class SetsTorchsThreads(Sets):
    def set(self) -> None:
        import torch

        torch.set_num_threads(1)


class SetsTorchsGradients(Sets):
    def set(self) -> None:
        import torch

        torch.set_grad_enabled(False)


class SetsWarnings(Sets):
    def set(self) -> None:
        warnings.filterwarnings("ignore", category=DeprecationWarning)


class SetsLogging(Sets):
    def set(self) -> None:
        logging.getLogger().setLevel(logging.ERROR)


class SetsGarbageCollection(Sets):
    def set(self) -> None:
        gc.disable()


class SetsRecursion(Sets):
    def set(self) -> None:
        sys.setrecursionlimit(50_000)


class SetsThePath(Sets):
    def set(self) -> None:
        sys.path.append("/my/index")


class SetsStdout(Sets):
    def set(self) -> None:
        sys.stdout = sys.stderr


class SetsTheUmask(Sets):
    def set(self) -> None:
        os.umask(0o077)
