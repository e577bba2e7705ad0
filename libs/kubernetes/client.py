"""Opens it by a file, a service account or KUBECONFIG, and never tells what stands in these."""

import httpx2
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.core.exceptions import ConfigError

# For one call.
REQUEST_SECONDS = 10.0
# What calls raise beside ApiError, and ApiError itself where its words are not those of Kubernetes.
UNREACHED = (httpx2.HTTPError, ConfigError, OSError)


def open_client(kubeconfig: str = "", namespace: str = "") -> AsyncClient:
    """Of the cluster that the file `kubeconfig` names; without one, of that which this process runs in, else of KUBECONFIG's.

    Calls are about `namespace`, by default the configuration's. Reads files: not for the event loop. Raises ValueError.
    """
    try:
        found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        return AsyncClient(config=found.get(), namespace=namespace or None, timeout=httpx2.Timeout(REQUEST_SECONDS))
    except ConfigError as error:
        raise ValueError(f"no cluster can be used (a service account, a kubeconfig file or KUBECONFIG names one): {error}") from None
    except Exception as error:
        # Its words may be the file's, and there are keys in it.
        raise ValueError(f"no cluster can be used: its configuration does not hold ({type(error).__name__})") from None


def words(error: Exception) -> str:
    """Why a call did not succeed; never what it carried."""
    if isinstance(error, ApiError):
        return f"{error.status.code}: {error.status.message}"[:300]
    if isinstance(error, httpx2.HTTPStatusError):
        return f"{error.response.status_code}, and not in the words of Kubernetes"
    if isinstance(error, ConfigError):
        # After the colon comes what a program said that was asked for credentials.
        return str(error).partition(":")[0][:300]
    return f"{type(error).__name__}: {error}"[:300]
