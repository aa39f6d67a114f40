"""A chain of modules in the manner of mgds, written for the tests: each asks those before it for values by name."""


class PipelineModule:
    def __init__(self):
        self.chain, self.place = [], 0

    def _get_previous_item(self, variation, name, index):
        for module in reversed(self.chain[: self.place]):
            if name in module.get_outputs():
                return module.get_item(variation, index, name)[name]
        raise KeyError(name)

    def _get_previous_length(self, name):
        return next(m for m in self.chain if name in m.get_outputs()).length()
