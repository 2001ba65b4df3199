"""Nodes for the tests: behaviour that ComfyUI's own nodes show only with a model, a GPU or bad luck.

Loaded by the ComfyUI that `tests/rig/comfyui` starts. All run on the CPU in no time, save where waiting is the point.
"""
import time

import torch
from comfy.model_management import OOM_EXCEPTION, throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from PIL import Image


def number(default, least, most):
    return ("INT", {"default": default, "min": least, "max": most})


# Changes what the cache sees and nothing else, so that a graph can be made to run again.
NONCE = number(0, 0, 2**53)


class ImageNode:
    """One picture in, the same picture out; what happens between is the subclass's."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "rig"
    REQUIRED = {}
    OPTIONAL = {}
    HIDDEN = {}

    @classmethod
    def INPUT_TYPES(cls):
        groups = {
            "required": {"image": ("IMAGE",), **cls.REQUIRED},
            "optional": cls.OPTIONAL,
            "hidden": cls.HIDDEN,
        }
        return {name: inputs for name, inputs in groups.items() if inputs}


class RigSlowSteps(ImageNode):
    """Takes `steps` steps of `step_ms`, tells each one, and stops when it is interrupted."""

    REQUIRED = {"steps": number(20, 1, 100_000), "step_ms": number(100, 0, 600_000)}
    OPTIONAL = {"preview_every": number(0, 0, 100_000), "nonce": NONCE}
    HIDDEN = {"unique_id": "UNIQUE_ID"}

    def run(self, image, steps, step_ms, preview_every=0, nonce=0, unique_id=None):
        progress = ProgressBar(steps, node_id=unique_id)
        for step in range(1, steps + 1):
            throw_exception_if_processing_interrupted()
            time.sleep(step_ms / 1000)
            due = preview_every and step % preview_every == 0
            progress.update_absolute(step, steps, self.preview(image) if due else None)
        throw_exception_if_processing_interrupted()
        return (image,)

    @staticmethod
    def preview(image):
        pixels = image[0].clamp(0, 1).mul(255).byte().cpu().numpy()
        return ("JPEG", Image.fromarray(pixels), 512)


class RigBlock(ImageNode):
    """Deaf to interrupts for `ms`, as a node deep inside a library call is."""

    REQUIRED = {"ms": number(3_000, 0, 600_000)}
    OPTIONAL = {"nonce": NONCE}

    def run(self, image, ms, nonce=0):
        time.sleep(ms / 1000)
        return (image,)


class RigFail(ImageNode):
    """Raises."""

    OPTIONAL = {"message": ("STRING", {"default": "rig: forced failure"})}

    def run(self, image, message="rig: forced failure"):
        raise RuntimeError(message)


class RigOOM(ImageNode):
    """Runs out of memory, as torch or as Python tells it."""

    REQUIRED = {"kind": (["torch", "python"],)}

    def run(self, image, kind):
        if kind == "python":
            raise MemoryError("rig: forced MemoryError")
        raise OOM_EXCEPTION("Allocation on device 0 would exceed allowed memory. (out of memory)")


class RigText:
    """Its result is a text, not a file."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    CATEGORY = "rig"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "hello", "multiline": True})}}

    def run(self, text):
        return {"ui": {"text": [text]}, "result": (text,)}


class RigManyImages:
    """A batch of `count` plain pictures, each of another colour."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "rig"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": number(8, 1, 4_096), "size": number(32, 8, 4_096), "seed": NONCE}}

    def run(self, count, size, seed):
        colours = torch.rand((count, 1, 1, 3), generator=torch.Generator().manual_seed(seed))
        return (colours.expand(count, size, size, 3).contiguous(),)


class RigLooksItself(ImageNode):
    """Looks at its own values, so that what its definition says of `number` and `choice` does not count."""

    REQUIRED = {"number": number(1, 0, 10), "choice": (["a", "b"],), "other": (["a", "b"],)}

    @classmethod
    def VALIDATE_INPUTS(cls, number, choice):
        return True if number < 1_000 else f"{number} is beyond everything"

    def run(self, image, number, choice, other):
        return (image,)


class RigLooksAtAll(ImageNode):
    """Looks at all its values itself."""

    REQUIRED = {"number": number(1, 0, 10), "choice": (["a", "b"],)}

    @classmethod
    def VALIDATE_INPUTS(cls, **values):
        return True

    def run(self, image, **values):
        return (image,)


class RigTakesAnything:
    """Looks at the types of its links itself."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "rig"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def run(self, image):
        return {}


NODES = (
    RigSlowSteps, RigBlock, RigFail, RigOOM, RigText, RigManyImages, RigLooksItself, RigLooksAtAll, RigTakesAnything,
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
