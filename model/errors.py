"""What can go wrong with a model, as one tree.

ModelError
├── BundleError             a bundle on disk can't be used
│   ├── BundleMissing         a file of it is not there
│   ├── BundleMalformed       the manifest is not what the format says
│   ├── BundleVersionUnknown  written by a newer or foreign format
│   ├── BundleDigestMismatch  the weights are not the ones the manifest names
│   ├── BundleTruncated       the weights file ends early or can't be parsed
│   ├── BundleConflict        two versions of a model can't be told apart, or can't be of one model
│   └── BundleShapeMismatch   a tensor is missing, surplus, of the wrong shape, or not finite
├── ConversionError         a foreign state dict can't become this LSTM
├── DataError               a data file can't be read as the task needs it
├── TaskError               there is no such task, or not at that length
├── TrainingError           training can't start, can't go on, or can't be resumed from what is there
└── ExplainError            the page about a bundle can't be made or written
"""


class ModelError(Exception):
    """Root of the tree."""


class BundleError(ModelError):
    """A bundle can't be used; the message names the file."""


class BundleMissing(BundleError):
    """A file of the bundle is not there."""


class BundleMalformed(BundleError):
    """The manifest is not JSON, or a field is missing or has the wrong type or value."""


class BundleVersionUnknown(BundleError):
    """The manifest has a format version that this release does not read."""


class BundleDigestMismatch(BundleError):
    """The SHA-256 of the weights file is not the manifest's."""


class BundleTruncated(BundleError):
    """The weights file is shorter than its own header says, or has no readable header."""


class BundleConflict(BundleError):
    """Bundles that can't be versions of one model."""


class BundleShapeMismatch(BundleError):
    """A tensor is missing, surplus, of the wrong shape or type, or holds a non-finite number."""


class ConversionError(ModelError):
    """A foreign state dict has no equivalent here; the message says which part and why."""


class DataError(ModelError):
    """A data file can't be read as the task needs it; the message names the line and column."""


class TrainingError(ModelError):
    """Training can't start, can't go on (the loss is not finite), or can't be resumed from what is there."""


class TaskError(ModelError):
    """A long-memory task that does not exist, or that can't be set at the length asked for."""


class ExplainError(ModelError):
    """The page about a bundle can't be made (matplotlib is missing) or can't be written."""
