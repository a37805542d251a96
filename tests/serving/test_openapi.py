"""/openapi.json held against the server that it describes, by schemathesis."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture(scope="module")
def serving(start_for_session: Any, exported: Any, tmp_path_factory: Any) -> Any:
    events = tmp_path_factory.mktemp("openapi") / "events.db"
    return start_for_session(f"--artifact={exported('sasrec', 0)}", f"--state=sqlite:{events}")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_answers_as_it_is_described(serving: Any, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{serving.url}/openapi.json")
    checks = CHECKS.get_by_names(CHECKED)
    results: Any = described.get_all_operations()
    operations = [result.ok() for result in results]
    labels = {operation.label for operation in operations}
    assert {"POST /v1/recommend", "POST /v1/events", "GET /v1/items", "GET /v1/model"} <= labels
    assert {"POST /v2/models/{name}/infer", "GET /readyz", "GET /metrics"} <= labels
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue  # there is nothing to get wrong

        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            case.call_and_validate(base_url=serving.url, checks=checks)

        check()
    assert serving.complaints() == ""
