"""Change a module of somebody else's as soon as it has been imported."""

import importlib.machinery
import sys


class Finder:
    """Finds the modules that `changes` names as Python does, and hands each to its change when it has been run."""

    def __init__(self, changes):
        self.changes = changes

    def find_spec(self, name, path=None, target=None):
        if name not in self.changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                self.changes[name](module)

            spec.loader.exec_module = exec_module
        return spec


def when_imported(changes):
    """From now on; `changes` has a function of the module for each module's name."""
    sys.meta_path.insert(0, Finder(changes))
