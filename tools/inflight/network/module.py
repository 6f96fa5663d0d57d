"""Module and Parameter: like torch.nn's, but symbolic. They hold shapes, never data."""

from collections.abc import Iterator

from inflight.errors import NetworkError


class Parameter:
    """A weight by shape. Its name is its path in the module tree, known once the tree is traced."""

    def __init__(self, *shape: int):
        if not 1 <= len(shape) <= 2 or any(not isinstance(size, int) or size < 1 for size in shape):
            raise NetworkError(f"a parameter has one or two positive integer sizes, found {list(shape)}")
        self.shape = shape
        self.name: str | None = None

    def __repr__(self) -> str:
        return f"Parameter({self.name or '?'}, {list(self.shape)})"


class Module:
    """Assigning a Parameter or a Module to an attribute registers it. Subclasses define forward()."""

    def __init__(self):
        self._parameters: dict[str, Parameter] = {}
        self._modules: dict[str, Module] = {}
        self.path: str | None = None

    def __setattr__(self, name: str, value: object):
        registry = {Parameter: "_parameters", Module: "_modules"}.get(_registered_kind(value))
        if registry:
            self._register(registry, name, value)
        object.__setattr__(self, name, value)

    def _register(self, registry: str, name: str, value: object):
        if registry not in self.__dict__:
            raise NetworkError(f"{type(self).__name__}: call super().__init__() before assigning {name!r}")
        getattr(self, registry)[name] = value

    def forward(self, *args):
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args):
        tracer = next((arg.tracer for arg in args if hasattr(arg, "tracer")), None)
        if tracer is None:
            raise NetworkError(f"{type(self).__name__} is called without a symbolic tensor; use trace()")
        with tracer.scope(self):
            return self.forward(*args)

    @property
    def is_leaf(self) -> bool:
        return not self._modules

    def named_modules(self, path: str = "") -> Iterator[tuple[str, "Module"]]:
        yield path, self
        for name, module in self._modules.items():
            yield from module.named_modules(join(path, name))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                yield join(path, name), parameter

    def assign_names(self):
        """Gives every module and parameter its path. A parameter under two paths is an error."""
        for path, module in self.named_modules():
            module.path = path
        seen: dict[int, str] = {}
        for name, parameter in self.named_parameters():
            if id(parameter) in seen:
                raise NetworkError(
                    f"parameter {name!r} is the same object as {seen[id(parameter)]!r}; to tie two weights give both "
                    "the same checkpoint tensor in the definition's checkpoint_names"
                )
            seen[id(parameter)] = parameter.name = name


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _registered_kind(value: object) -> type | None:
    return next((kind for kind in (Parameter, Module) if isinstance(value, kind)), None)
