"""Every error that Limner raises on purpose.

::

    LimnerError
    ├── OptionError            an option's value or name is wrong          (also ValueError)
    ├── ShapeError             a tensor or array has the wrong shape       (also ValueError)
    ├── MediaError             a picture or video cannot be read or written
    ├── CheckpointError        a model file cannot be used
    │   ├── UnknownFormatError     no reader recognises it
    │   ├── KeyMismatchError       recognised, but its tensors do not fit
    │   └── UnsafePickleError      it tries to do more than build arrays
    ├── ZooError               a model is missing, damaged or cannot be fetched
    ├── FaceNotFoundError      no face where one is needed
    ├── DivergedError          an optimisation left the finite numbers
    └── MissingExtraError      an optional package is not installed        (also ImportError)

A message says what came, what was expected and what to do.  The command line prints it on one line and exits
with 2; the HTTP service answers 4xx.  Any other exception is a bug and shows its traceback.
"""


class LimnerError(Exception):
    """Base of every error that Limner raises on purpose."""


class OptionError(LimnerError, ValueError):
    """An option has an unknown name or a value outside its range."""


class ShapeError(LimnerError, ValueError):
    """A tensor or array does not have the shape that was asked for."""


class MediaError(LimnerError):
    """A picture or video cannot be read or written."""


class CheckpointError(LimnerError):
    """A model file cannot be used."""


class UnknownFormatError(CheckpointError):
    """No reader recognises the file; the message lists the formats that were tried."""


class KeyMismatchError(CheckpointError):
    """The file was recognised but its tensors do not fit the architecture."""


class UnsafePickleError(CheckpointError):
    """The pickle tries to do more than build arrays; nothing of it was run."""


class ZooError(LimnerError):
    """A model is missing, damaged or cannot be fetched."""


class FaceNotFoundError(LimnerError):
    """No face was found where one is needed."""


class DivergedError(LimnerError):
    """An optimisation produced infinite or undefined numbers."""


class MissingExtraError(LimnerError, ImportError):
    """An optional package is not installed; the message names the extra."""
