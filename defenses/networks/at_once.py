"""Whether many networks of one architecture run at once, or one by one."""

from torch import Tensor


def few_images(widest: int, most: int) -> int:
    """Up to how many images a CPU runs many networks at once.

    widest  how many elements one network's largest tensor has for one image.
    most    how many elements it may have for all images together. It is to be measured: beyond it
            the tensors of all networks fit in no cache, and those of one do.
    """
    return most // widest


def at_once(x: Tensor, few: int, accelerated: bool = False) -> bool:
    """Whether many networks run at once on images x (1 or k, n, *shape): on up to `few` images, and
    on an accelerator, if it is said to be faster there, on any number."""
    return x.shape[1] <= few or (accelerated and x.device.type != "cpu")
