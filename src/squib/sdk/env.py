"""A VM's environment variables: `AsyncEnv` and `Env`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from squib.errors import EngineUnavailable
from squib.sdk.client import EngineClient
from squib.sdk.config import check_ref
from squib.sdk.portal import Portal


class EnvVars(Mapping[str, str]):
    """A read-only mapping of environment variables.

    ``repr`` shows the names only, because values may be secrets.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(sorted(variables.items()))

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"<EnvVars {' '.join(self._variables)}>" if self._variables else "<EnvVars>"


class AsyncEnv:
    """The VM's environment variables, for asyncio programs.

    A change applies to commands that are started after it. Running commands keep their environment. The variables
    persist when the VM restarts.
    """

    def __init__(self, engine: EngineClient, ref: str) -> None:
        self._engine = engine
        self._path = f"/vms/{check_ref(ref)}/env"

    async def list(self) -> EnvVars:
        """Return all variables. Raises `NotFound`."""
        return _read(await self._engine.request("GET", self._path))

    async def set(self, variables: Mapping[str, str] | None = None, /, **more: str) -> EnvVars:
        """Set variables and return all variables.

        Call it as ``set({"KEY": "value"})`` or ``set(KEY="value")``.

        Raises `NotFound`, and `InvalidArgument` if a name is invalid or the environment becomes too large.
        """
        body = {"set": {**(variables or {}), **more}}
        return _read(await self._engine.request("PATCH", self._path, body))

    async def unset(self, *names: str) -> EnvVars:
        """Remove variables and return the remaining ones.

        Names that are not set are ignored.

        Raises `InvalidArgument`, `NotFound`.
        """
        return _read(await self._engine.request("PATCH", self._path, {"unset": names}))


class Env:
    """The VM's environment variables.

    The synchronous version of `AsyncEnv`.
    """

    def __init__(self, portal: Portal, env: AsyncEnv) -> None:
        self._portal = portal
        self._env = env

    def list(self) -> EnvVars:
        """See `AsyncEnv.list`."""
        return self._portal.run(self._env.list())

    def set(self, variables: Mapping[str, str] | None = None, /, **more: str) -> EnvVars:
        """See `AsyncEnv.set`."""
        return self._portal.run(self._env.set(variables, **more))

    def unset(self, *names: str) -> EnvVars:
        """See `AsyncEnv.unset`."""
        return self._portal.run(self._env.unset(*names))


def _read(answer: object) -> EnvVars:
    env = answer.get("env") if isinstance(answer, dict) else None
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise EngineUnavailable("invalid response (env)", hint="squib version shows the engine's version")
    return EnvVars(env)
