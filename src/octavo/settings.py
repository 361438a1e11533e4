"""Every setting of the house: defaults < `octavo.toml` < `OCTAVO_*` environment < command-line flags.

A nested setting is written `[serving] memory_budget = "2GiB"` in the file and `OCTAVO_SERVING__MEMORY_BUDGET` in the
environment. `docs/settings.md` is generated from these classes.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from platformdirs import user_data_path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from octavo.errors import Invalid, NotFound

CONFIG_FILE = "octavo.toml"

log = logging.getLogger("octavo.settings")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(value: object) -> object:
    """`"2GiB"`, `"500 MB"` or a plain number, in bytes; other text is refused, other types are left to pydantic."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        if match and match[2].upper() in _UNITS:
            return int(float(match[1]) * _UNITS[match[2].upper()])
        raise ValueError(f"{value!r} is not a size; write bytes, or a size such as '2GiB'")
    return value


ByteSize = Annotated[int, BeforeValidator(parse_bytes)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class WebSettings(_Section):
    """The HTTP door."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8600, ge=0, le=65535, description="Port; 0 picks a free one.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Names a proxy in front may ask for while `host` is loopback, such as `octavo.example.org`."
    )
    max_body: ByteSize = Field(64 * 2**20, ge=1024, description="Largest request body, bytes; larger gets 413.")
    body_timeout: float = Field(30.0, gt=0, description="Seconds a client may take to send its body; slower gets 408.")
    max_connections: int = Field(12_000, ge=1, description="Open connections; more are answered 503.")
    keep_alive: int = Field(20, ge=1, description="Seconds an idle connection is kept.")
    session_hours: float = Field(12.0, gt=0, description="Life of a console session.")


class StorageSettings(_Section):
    """Where rows and bytes live."""

    database: str = Field("", description="SQLAlchemy URL; empty means `octavo.db` (SQLite, WAL) in the workspace.")
    objects: str = Field("", description="Folder or `s3://bucket/prefix`; empty means `objects/` in the workspace.")
    s3_endpoint: str = Field("", description="Endpoint of an S3-compatible store other than AWS.")
    s3_region: str = Field("us-east-1", description="Region of the S3 store.")
    s3_access_key: str = Field("", description="Access key; empty means the environment's own AWS chain.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key.")


class JobSettings(_Section):
    """Long work."""

    engine: str = Field("local", pattern="^(local|ray)$", description="Where heavy steps compute: `local` or `ray`.")
    ray_address: str = Field("", description="Address of a Ray cluster; empty starts one on this machine.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes.")
    idle_seconds: float = Field(60.0, gt=0, description="A worker without work leaves after this long.")
    max_queued: int = Field(10_000, ge=1, description="Jobs waiting; more are refused (429).")
    max_log_lines: int = Field(10_000, ge=10, description="Log lines kept per job; older ones go.")


class ServingSettings(_Section):
    """The multi-model server."""

    repository: str = Field("", description="Folder or `s3://...` of models; empty means `models/` in the workspace.")
    cache: str = Field(
        "", description="Folder of machine-specific packed weights; empty means `cache/` in the workspace."
    )
    cache_limit: ByteSize = Field(20 * 2**30, ge=0, description="Bytes the cache folder may hold.")
    memory_budget: ByteSize = Field(
        0, ge=0, description="Bytes for resident models; 0 means `memory_share` of the machine."
    )
    memory_share: float = Field(0.5, gt=0, le=0.95, description="Share of the machine's (or cgroup's) memory.")
    threads: int = Field(0, ge=0, description="Runs in parallel over all models; 0 means one per core.")
    parallel_loads: int = Field(2, ge=1, description="Models loading at once.")
    load_timeout: float = Field(120.0, gt=0, description="Seconds a load may take.")
    load_backoff: float = Field(1.0, ge=0, description="Seconds before a failed load is tried again; doubles up to 60.")
    idle_ttl: float = Field(0.0, ge=0, description="Seconds after which an idle model leaves; 0 means never.")
    tiered: bool = Field(True, description="Answer a cold model's first request from the unpacked map, then swap.")
    max_queue: int = Field(512, ge=1, description="Requests waiting per model; more get 429.")
    max_pending: int = Field(8192, ge=1, description="Requests waiting over all models; more get 503.")
    default_deadline: float = Field(60.0, gt=0, description="Seconds a request may take when it names no deadline.")
    token_budget: int = Field(256, ge=1, description="Padded tokens per batch; a CPU gains nothing from more.")
    length_window: float = Field(0.25, ge=0, le=1, description="Relative spread of lengths that share a batch.")
    max_batch_rows: int = Field(64, ge=1, description="Rows per batch where the model sets no limit.")
    max_inputs: int = Field(2048, ge=1, description="Texts per request for embeddings.")
    max_examples: int = Field(100_000, ge=2, description="Rows in a file of a tenant's examples; more are refused.")
    grpc_port: int = Field(
        -1, ge=-1, le=65535, description="Port of KServe v2 over gRPC; -1 means the HTTP port plus one, 0 none."
    )
    watch_seconds: float = Field(2.0, gt=0, description="How often the repository is looked at for changes.")
    default_model: str = Field("", description="Model of `POST /invocations` without a name; empty means the only one.")
    model_sources: str = Field(
        "", description="Folder below which `POST /models` and SageMaker's `CreateModel` may publish from; empty: none."
    )
    model_buckets: tuple[str, ...] = Field(
        (), description="`s3://` prefixes `CreateModel` may publish from; empty means any but octavo's own."
    )
    machine_price: float = Field(0.192, ge=0, description="Price of this machine per hour, for `octavo costs`.")
    usage_flush_seconds: float = Field(
        10.0, gt=0, description="How often usage is written to the database; a crash loses no more than that."
    )
    usage_days: int = Field(400, ge=1, description="Days usage is kept.")
    allow_code: bool = Field(False, description="Run Python and PyTorch models found in the repository.")
    python_memory: ByteSize = Field(
        2 * 2**30, ge=0, description="Address-space limit of a Python model's worker; 0 none."
    )
    python_timeout: float = Field(60.0, gt=0, description="Seconds one execute() may take before its worker is killed.")
    package_bytes: ByteSize = Field(8 * 2**30, ge=1, description="Bytes an archive of models may unpack to.")
    package_file_bytes: ByteSize = Field(4 * 2**30, ge=1, description="Bytes one file of such an archive may have.")
    package_files: int = Field(10_000, ge=1, description="Files in such an archive.")
    package_ratio: float = Field(
        200.0, ge=1, description="Unpacked over packed bytes of such an archive, from 64 MiB on; more is a bomb."
    )
    deploy_lease: float = Field(
        600.0, gt=0, description="Seconds a step of a deployment may take before another may go on with it."
    )


class FleetSettings(_Section):
    """Replicas of the server on a Ray cluster (`octavo up --ray`)."""

    ray: str = Field("", description="Ray cluster: `local`, `auto` or HOST:PORT; empty means that no fleet answers.")
    min_replicas: int = Field(1, ge=1, le=1000, description="Least replicas.")
    max_replicas: int = Field(10, ge=1, le=1000, description="Most replicas.")
    replica_cpus: float = Field(1.0, gt=0, le=1024, description="CPUs that a replica takes of its node.")
    replica_memory: ByteSize = Field(
        0, ge=0, description="Bytes for a replica's models; 0 means its part of the node's `serving.memory_share`."
    )
    memory_utilisation: float = Field(80.0, gt=0, le=100, description="Target, percent of the replicas' memory.")
    invocations_per_replica: float = Field(225.0, gt=0, description="Target, requests per minute and replica.")
    scale_out_cooldown: float = Field(300.0, ge=0, description="Seconds between two growths.")
    scale_in_cooldown: float = Field(300.0, ge=0, description="Seconds between two shrinkings.")
    spill_at: int = Field(
        8, ge=1, description="Requests in flight at a replica from which its models are loaded at another one too."
    )
    report_seconds: float = Field(0.5, gt=0, le=10, description="How often a replica tells what it holds.")
    lost_seconds: float = Field(15.0, gt=0, description="A replica silent for so long is lost: its requests move.")
    start_seconds: float = Field(120.0, gt=0, description="Seconds the first replica may take to start.")
    drain_seconds: float = Field(60.0, ge=0, description="Seconds a replica that goes may finish its requests in.")
    resends: int = Field(3, ge=0, le=100, description="Times a request whose replica was lost is sent again.")
    object_store: ByteSize = Field(
        256 * 2**20, ge=80 * 2**20, description="Bytes of shared memory for Ray's objects, where `ray` is `local`."
    )


class Settings(BaseSettings):
    """All settings of one workspace. Build it with `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="OCTAVO_", env_nested_delimiter="__", extra="forbid", validate_default=True, validate_assignment=True
    )

    workspace: Path = Field(
        default_factory=lambda: user_data_path("octavo"),
        description="The folder worked in; the current one where it holds an `octavo.toml`.",
    )
    token: SecretStr = Field(SecretStr(""), description="Admin token; empty makes one at first start.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least level logged.")
    web: WebSettings = WebSettings()
    storage: StorageSettings = StorageSettings()
    jobs: JobSettings = JobSettings()
    serving: ServingSettings = ServingSettings()
    fleet: FleetSettings = FleetSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over what is passed in: `load_settings` passes the file's values, then applies flags itself."""
        return env_settings, init_settings

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the rows."""
        return self.storage.database or f"sqlite:///{self.workspace / 'octavo.db'}"

    @property
    def objects_url(self) -> str:
        """Folder or URL of the bytes."""
        return self.storage.objects or str(self.workspace / "objects")

    @property
    def repository_url(self) -> str:
        """Folder or URL of the model repository."""
        return self.serving.repository or str(self.workspace / "models")

    @property
    def cache_folder(self) -> Path:
        """Folder of machine-specific files that can be made again."""
        return Path(self.serving.cache) if self.serving.cache else self.workspace / "cache"

    @property
    def run_folder(self) -> Path:
        """Folder of what lives only while the server runs (address, process id)."""
        return self.workspace / "run"


def load_settings(workspace: Path | str | None = None, **flags: Any) -> Settings:
    """Settings of a workspace.

    Args:
        workspace: folder; need not exist. Default: `OCTAVO_WORKSPACE`, else the current folder when it holds an
            `octavo.toml`, else the user data folder.
        flags: highest precedence; nested ones by section, as `web={"port": 0}`. `None` values are ignored.

    Raises:
        Invalid: a value of the wrong type or an unknown key; names the key and its source file.
    """
    named = workspace or os.environ.get("OCTAVO_WORKSPACE")
    folder = Path(named or _unnamed_workspace()).expanduser().absolute()
    file = folder / CONFIG_FILE
    values = _read_file(file)
    try:
        base = Settings(**(values | {"workspace": folder}))
        if base.serving.allow_code and not named and "OCTAVO_SERVING__ALLOW_CODE" not in os.environ:
            log.warning("serving.allow_code counts only in a workspace that is named: --workspace %s", folder)
            base.serving.allow_code = False
        if not flags:
            return base.model_copy(update={"workspace": folder})
        return _apply(base, flags | {"workspace": folder})
    except ValidationError as error:
        raise _readable(error, file) from None
    except SettingsError as error:
        raise _unreadable(error) from None


def _unnamed_workspace() -> Path:
    """The current folder when it is a workspace, else the user's data folder."""
    return Path.cwd() if os.path.isfile(CONFIG_FILE) else user_data_path("octavo")  # noqa: PTH113 (it may raise)


def existing_workspace(workspace: Path | str | None = None) -> Settings:
    """Settings of a workspace that a command looks into; commands that make something make the folder too.

    Raises:
        NotFound: the folder that was named, by flag or environment, does not exist: a slip, most likely.
        Invalid: as `load_settings`.
    """
    settings = load_settings(workspace)
    named = workspace or os.environ.get("OCTAVO_WORKSPACE")
    if named and not settings.workspace.is_dir():
        raise NotFound("there is no such workspace", str(settings.workspace), "Make it: octavo init DIR")
    return settings


def _read_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(
            f"not a valid TOML file: {error}", str(file), "Correct it, or remove it for the defaults."
        ) from None


def _apply(base: Settings, flags: dict[str, Any]) -> Settings:
    """`base` with flags laid over it, every one validated."""
    settings = base.model_copy()
    for name, value in flags.items():
        if value is None:
            continue
        if name not in Settings.model_fields:
            raise Invalid(f"unknown setting {name!r}", "flags", "See docs/settings.md for the names.")
        current = getattr(base, name)
        if isinstance(current, BaseModel) and isinstance(value, dict):
            value = current.model_dump() | {key: item for key, item in value.items() if item is not None}
        setattr(settings, name, value)
    return settings


def _readable(error: ValidationError, file: Path) -> Invalid:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    variable = "OCTAVO_" + "__".join(str(part).upper() for part in first["loc"])
    what = f"unknown setting {key}" if first["type"] == "extra_forbidden" else f"setting {key}: {_sentence(first)}"
    where = variable if variable in os.environ else str(file)
    return Invalid(what, where, "Correct it there; docs/settings.md lists all.")


def _unreadable(error: SettingsError) -> Invalid:
    """A variable that should hold a list or an object, and does not hold it as JSON."""
    field = re.search(r'field "(\w+)"', str(error))
    prefix = f"OCTAVO_{field[1].upper()}" if field else "OCTAVO_"
    variables = ", ".join(sorted(name for name in os.environ if name.startswith(prefix)))
    reason = error.__cause__ or error
    return Invalid(f"a list in the environment is not JSON: {reason}", variables, 'Write it as ["octavo.example.org"].')


def _sentence(problem: ErrorDetails) -> str:
    """Pydantic's message without its own prefix."""
    return problem["msg"].removeprefix("Value error, ")
