"""Settings of the gateway."""

from libs.process import ProcessSettings
from libs.rpc import IdentitySettings, PeerSettings, TlsSettings
from libs.settings import Block, SettingsConfigDict
from libs.storage import StorageSettings


class Limits(Block):
    """Bounds on what a client may send, and how fast. Sizes in bytes, times in seconds."""

    json_bytes: int = 1 << 20
    predict_bytes: int = 32 << 20
    upload_bytes: int = 10 << 30
    header_bytes: int = 32 << 10
    header_count: int = 100
    # From a connection's first byte, or its opening, to the end of a request's headers.
    head_seconds: float = 10.0
    # A JSON body has to be there; of an upload the next chunk.
    body_seconds: float = 30.0
    idle_seconds: float = 5.0
    connections: int = 4096
    # In the notation of the `limits` library, for each workspace.
    api_rate: str = "6000/minute"
    inference_rate: str = "600000/minute"


class GatewaySettings(ProcessSettings):
    """`LEPTON_GATEWAY_…`."""

    model_config = SettingsConfigDict(env_prefix="LEPTON_GATEWAY_")

    host: str = "127.0.0.1"
    port: int = 8080
    # Of the gateway: where the same host takes the inference protocol over gRPC.
    grpc_port: int = 8081
    # Instead of host and port: a unix socket.
    socket: str = ""
    # Several processes on one port of one machine; the kernel spreads connections over them.
    share_port: bool = False
    # Of the gateway: where the control plane listens, as "http://gateway:8081" or "unix:/run/control".
    control_url: str = "http://control:8081"
    # Of the gateway: what was answered is written here until it is recorded. It outlives the process.
    spool_dir: str = "spool"
    peers: PeerSettings = PeerSettings()
    identity: IdentitySettings = IdentitySettings()
    tls: TlsSettings = TlsSettings()
    storage: StorageSettings = StorageSettings()
    limits: Limits = Limits()
    # What a problem's `type` begins with; its code follows.
    problem_base: str = "https://lepton.dev/problems/"
    # Predictions that are reserved of a workspace's quota at once.
    prediction_block: int = 1000
    # Longest that a prediction may take, waiting for a first replica included.
    predict_seconds: float = 60.0
    # Where traces are read, as "jaeger+http://jaeger:16686"; empty: where they are written.
    traces_url: str = ""
