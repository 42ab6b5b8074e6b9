from .torch_file import read_torch_file as read_torch_file
