"""The data sets to measure on, their files and their variants."""

from benchmark.data.dataset import Dataset, Split, fingerprint
from benchmark.data.files import DataError
from benchmark.data.sets import load_dataset
from benchmark.data.variants import VARIANTS

__all__ = ["VARIANTS", "DataError", "Dataset", "Split", "fingerprint", "load_dataset"]
