from model.convert.torch_state import from_torch

__all__ = ["from_torch"]
