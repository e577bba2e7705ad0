"""Every RPC says who may call it and where REST has it, is named as the house names, and is answered by its servicer."""

import inspect
import re
from collections import Counter

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from lepton.common.v1 import options_pb2
from services.gateway.transcode import Rule, rule_of
from tests.contract.wire.catalogue import METHODS, ROOT, SERVICES, generated, servicer

# Their REST forms are not JSON: an upload's bytes, and server-sent events.
BY_HAND = {
    "lepton.data.v1.DataService.IngestContent": ("PUT", "/v1/datasets/{name}/content"),
    "lepton.training.v1.TrainingService.RegisterModelVersion": ("PUT", "/v1/models/{name}/content"),
    "lepton.training.v1.TrainingService.WatchTrainingJob": ("GET", "/v1/training-jobs/{id}/events"),
}
VERBS = {"Get": "GET", "List": "GET", "Preview": "GET", "Create": "POST", "Update": "PATCH", "Set": "PUT"}
VERBS |= {"Delete": "DELETE", "Unsubscribe": "DELETE"}  # any other verb is a POST


def role(method: MethodDescriptor) -> int:
    return int(method.GetOptions().Extensions[options_pb2.access].role)


def rules() -> dict[str, Rule]:
    found = {name: rule_of(method) for name, method in METHODS.items()}
    return {name: rule for name, rule in found.items() if rule is not None}


def test_all_services_are_walked() -> None:
    assert set(SERVICES) == {path.parent.parent.name for path in (ROOT / "proto").glob("lepton/*/v1/*_service.proto")}
    assert {path.parent.name for path in (ROOT / "services").glob("*/servicer.py")} == set(SERVICES)
    assert len(METHODS) > 60


@pytest.mark.parametrize("name", METHODS)
def test_it_says_who_may_call_it(name: str) -> None:
    options = METHODS[name].GetOptions()
    assert options.HasExtension(options_pb2.access), "without it the server refuses everybody"
    public = role(METHODS[name]) != options_pb2.ROLE_UNSPECIFIED
    assert (options.HasExtension(annotations_pb2.http) or name in BY_HAND) == public, "members call by REST, services never do"


@pytest.mark.parametrize("name", METHODS)
def test_names_of_request_and_response(name: str) -> None:
    method = METHODS[name]
    package = method.containing_service.file.package
    assert method.input_type.full_name == f"{package}.{method.name}Request"
    answer = method.output_type
    own = answer.full_name == f"{package}.{method.name}Response"
    resource = answer.file.package == package and not answer.file.name.endswith("_service.proto")
    assert own or resource, f"{answer.full_name} is neither the resource nor {method.name}Response"
    if method.name.startswith(("Get", "Create", "Update")) and resource:
        assert method.name.endswith(answer.name) or method.name == "CreateTransform"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.name.startswith("List")])
def test_lists(name: str) -> None:
    method = METHODS[name]
    request, response = method.input_type.fields_by_name, method.output_type.fields_by_name
    (items,) = [field for field in response.values() if field.is_repeated]
    assert items.message_type is not None
    # Short by their nature: what there is comes at once, without pages.
    if "page_token" in request or "next_page_token" in response:
        assert {"page_size", "page_token"} <= set(request)
        assert "next_page_token" in response
    else:
        assert name.rsplit(".", 1)[-1] in {"ListPlans", "ListReplicas", "ListRevisions"}


@pytest.mark.parametrize("name", rules())
def test_route(name: str) -> None:
    method, rule = METHODS[name], rules()[name]
    assert re.fullmatch(r"/v1(/[a-z][a-z-]*|/\{[a-z_]+\})+", rule.path), rule.path
    assert rule.has_body == (rule.verb in ("POST", "PUT", "PATCH")), rule.verb
    assert set(rule.path_fields) <= set(method.input_type.fields_by_name)
    assert len(set(rule.path_fields)) == len(rule.path_fields)
    http = method.GetOptions().Extensions[annotations_pb2.http]
    assert not http.additional_bindings
    word = re.match(r"[A-Z][a-z]+", method.name)
    assert word
    assert rule.verb == VERBS.get(word[0], "POST")


def overlap(one: str, other: str) -> bool:
    """Whether some path fits both."""
    pieces = list(zip(one.split("/"), other.split("/"), strict=False))
    same_length = one.count("/") == other.count("/")
    return same_length and all(a == b or "{" in a or "{" in b for a, b in pieces)


def test_no_two_routes_collide() -> None:
    routes = [(rule.verb, rule.path, name) for name, rule in rules().items()]
    routes += [(*place, name) for name, place in BY_HAND.items()]
    assert not [key for key, count in Counter((verb, re.sub(r"\{\w+\}", "{}", path)) for verb, path, _ in routes).items() if count > 1]
    for at, (verb, path, name) in enumerate(routes):
        for other_verb, other_path, other in routes[at + 1 :]:
            assert verb != other_verb or not overlap(path, other_path), f"{name} and {other} both take {verb} {path}"


@pytest.mark.parametrize("name", METHODS)
def test_its_servicer_answers_it(name: str) -> None:
    method = METHODS[name]
    service = name.split(".")[1]
    implemented = getattr(servicer(service), method.name)
    assert implemented is not getattr(generated(service, "Servicer"), method.name), "it still is the generated refusal"
    streams = method.server_streaming
    assert inspect.isasyncgenfunction(implemented) if streams else inspect.iscoroutinefunction(implemented)
    assert list(inspect.signature(implemented).parameters)[:2] == ["self", "request"]


@pytest.mark.parametrize("service", SERVICES)
def test_servicers_answer_nothing_else(service: str) -> None:
    surplus = {name for name in vars(servicer(service)) if name[0].isupper()} - {method.name for method in SERVICES[service].methods}
    assert not surplus, "no RPC is named so"
