"""Errors a person can act on. A front end shows these as text; anything else is a bug."""


class UserError(Exception):
    """Something the caller can put right: who, what must be, got what."""


class ParameterError(UserError, ValueError):
    """A hyper-parameter lies outside its declared domain."""


class UnknownNameError(UserError, LookupError):
    """Nothing is registered under this name; the message suggests the nearest one."""


class UnsupportedModelError(UserError, TypeError):
    """A model has nothing the method can work on, or something it cannot work through."""


class RecipeError(UserError, ValueError):
    """A saved recipe or plan cannot be read."""


class CheckpointError(UserError, ValueError):
    """A file of weights cannot be read, or does not fit the architecture."""


class DataUnavailableError(UserError, OSError):
    """Data that are neither on disk nor, at the moment, to be downloaded."""


class PictureError(UserError, ValueError):
    """A picture, or a collection of labelled pictures, cannot be used."""


class TrainingError(UserError, ArithmeticError):
    """Training left the finite numbers; the last good state is kept."""


class Stopped(Exception):  # noqa: N818, it is a signal and no error
    """Raised from `Run.on_progress` to stop a computation and keep what it has so far.

    Training leaves the network as the last whole epoch left it; a recipe keeps the steps before.
    """
