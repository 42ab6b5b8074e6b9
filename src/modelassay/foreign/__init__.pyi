from .importing import Imported as Imported
from .importing import import_artifact as import_artifact
