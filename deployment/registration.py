"""Which nodes Flower lets in: the sites of the server's folder, and no others."""

import http.client
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import tomli_w
from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from deployment.keys import header_key, read_node_public_key
from deployment.server_kit import ServerKit
from federation.files import write_whole


class RegistrationError(ValueError):
    """Flower's server that does not answer or refuses."""


def await_superlink(kit: ServerKit, seconds: float = 60) -> None:
    """Return once Flower's server answers. Raises RegistrationError where it does not."""
    context = ssl.create_default_context(cafile=kit.folder / "authority.pem")
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPSConnection("127.0.0.1", kit.facts.superlink_port, context=context, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status < http.client.INTERNAL_SERVER_ERROR:
                return
            problem = "it is not ready"
        except OSError as error:
            problem = str(error)
        finally:
            connection.close()
        if time.monotonic() > end:
            raise RegistrationError(
                f"Flower's server at {kit.address} does not answer ({problem}); see logs/superlink.log"
            )
        time.sleep(0.2)


def node_status(kit: ServerKit) -> dict[str, str]:
    """registered, online or offline, by site; sites that were not registered yet are missing."""
    with control(kit) as client:
        known = _known(client)
    return {name: known[key].status for name, key in _keys(kit).items() if key in known}


def register(kit: ServerKit) -> list[str]:
    """Register sites that are new or have a new key, unregister those no longer let in; what was done, for people.

    Raises RegistrationError where Flower's server does not answer, and for a key that was unregistered before, which it
    never takes again.
    """
    done, keys = [], _keys(kit)
    with control(kit) as client:
        known = _known(client)
        for key, node in known.items():
            if key not in keys.values():
                client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
                done.append(f"{node.name}: no longer registered")
        for name, key in keys.items():
            if key in known:
                continue
            try:
                client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
            except FlowerError as error:
                raise RegistrationError(
                    f"{name}: Flower's server does not register it ({error}); a key that was taken back is never good "
                    f"again: dipro-fed provision --revoke {name}, then --renew {name}"
                ) from None
            done.append(f"{name}: registered")
    return done


def write_connection(kit: ServerKit) -> None:
    """Tell Flower's commands where the server is, in the folder that the server's environment names."""
    connection = {"address": kit.address, "root-certificates": str(kit.folder / "authority.pem")}
    project = kit.facts.project
    write_whole(
        kit.folder / "flower" / "config.toml",
        tomli_w.dumps({"superlink": {"default": project, project: connection}}).encode(),
    )


@contextmanager
def control(kit: ServerKit) -> Iterator[ControlHttpClient]:
    """What Flower's own commands speak with its server through."""
    client = ControlHttpClient.from_server_address(
        server_address=kit.address,
        insecure=False,
        root_certificates=(kit.folder / "authority.pem").read_bytes(),
        interceptors=[CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        yield client
    except httpx.HTTPError as error:
        raise RegistrationError(f"Flower's server at {kit.address} does not answer ({error})") from None
    finally:
        client.close()


def _known(client: ControlHttpClient) -> dict[bytes, NodeInfo]:
    """The nodes that Flower lets in, by public key."""
    found = client.ListNodes(ListNodesRequest()).nodes_info
    return {each.public_key: each for each in found if each.status != "unregistered"}


def _keys(kit: ServerKit) -> dict[str, bytes]:
    """The public key of every site that is let in, as Flower keeps it."""
    return {name: header_key(read_node_public_key(kit.folder / "nodes" / f"{name}.pub")) for name in kit.facts.sites}
