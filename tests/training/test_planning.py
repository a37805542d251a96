"""Where tables go, and what that takes; nothing is allocated here."""

import dataclasses
from typing import Any

import pytest

from jaxrec.functional import functional
from jaxrec.models import matrix_factorization, sasrec
from jaxrec.optim import OptimizerConfig
from jaxrec.sharding import MeshConfig
from jaxrec.training.planning import Plan, make_plan
from jaxrec.training.state import abstract_state
from jaxrec.typing import UserError

FACTORS = matrix_factorization.Config(num_users=999_999, num_items=999, dim=63)
MIB = 2**20


def plan_of(
    mesh: MeshConfig,
    model: Any = FACTORS,
    optimizer: OptimizerConfig = OptimizerConfig(name="adagrad"),  # noqa: B008 - frozen
    table_dtype: str = "float32",
    **options: Any,
) -> Plan:
    state = abstract_state(
        functional(model.build), optimizer.build(100), table_dtype=table_dtype, **options
    )
    catalogue = ("items",) if options.get("average") else ()
    return make_plan(state, mesh, mesh.build(), catalogue=catalogue)


def placements(plan: Plan) -> dict[str, str]:
    return {table.name: table.placement for table in plan.tables}


def test_large_tables_are_split_and_small_ones_are_not() -> None:
    plan = plan_of(MeshConfig(data=2, model=4))
    assert placements(plan) == {"users": "row", "items": "replicated"}
    users, items = sorted(plan.tables, key=lambda table: -table.num_bytes)
    assert users.num_bytes == 2 * 1_000_000 * 64 * 4  # the table and the accumulator of Adagrad
    assert users.device_bytes == users.num_bytes // 4
    assert items.device_bytes == items.num_bytes == 2 * 1000 * 64 * 4
    assert plan.dense_bytes == 4 + 4  # the step's number, and that of the schedule
    assert plan.device_bytes == users.device_bytes + items.device_bytes + plan.dense_bytes
    text = str(plan)
    assert "1,000,000 x 64" in text and "122.1 MiB a device" in text and "2 x 4 devices" in text


def test_one_group_has_nothing_to_split() -> None:
    assert set(placements(plan_of(MeshConfig(data=8))).values()) == {"replicated"}


def test_a_wide_table_of_few_rows_is_split_by_columns() -> None:
    wide = matrix_factorization.Config(num_users=99, num_items=4_999_999, dim=2**15 - 1)
    plan = plan_of(MeshConfig(model=8, replicate_below=1.0), wide)
    assert placements(plan) == {"users": "column", "items": "row"}
    users = next(table for table in plan.tables if table.name == "users")
    assert users.device_bytes == 2 * 100 * 2**15 * 4 // 8


def test_a_table_that_the_loss_reads_as_a_whole_is_split_by_rows_or_not_at_all() -> None:
    few = matrix_factorization.Config(num_users=999, num_items=99, dim=2**15 - 1)
    plan = plan_of(MeshConfig(model=8, replicate_below=1.0), few, average=True)
    assert placements(plan)["items"] == "row"
    with pytest.raises(UserError, match="can only be split by rows"):
        plan_of(MeshConfig(model=8, tables="column"), few, average=True)


@pytest.mark.parametrize("tables", ["row", "column", "replicated"])
def test_what_is_asked_for_is_done(tables: Any) -> None:
    plan = plan_of(MeshConfig(model=4, tables=tables))
    assert set(placements(plan).values()) == {tables}


def test_columns_that_do_not_divide_are_refused() -> None:
    odd = dataclasses.replace(FACTORS, dim=64)
    with pytest.raises(UserError, match=r"table 'items' of width 65, .* into 4 parts"):
        plan_of(MeshConfig(model=4, tables="column"), odd)
    rowwise = OptimizerConfig(name="rowwise_adagrad")
    with pytest.raises(UserError, match="does not divide"):
        plan_of(MeshConfig(model=4, tables="column"), FACTORS, rowwise)


def test_slots_and_dtypes_count() -> None:
    mesh = MeshConfig(memory_gb=0.0)

    def users(**options: Any) -> int:
        return next(t.num_bytes for t in plan_of(mesh, **options).tables if t.name == "users")

    table = 1_000_000 * 64 * 4
    assert users(optimizer=OptimizerConfig(name="sgd")) == table
    assert users(optimizer=OptimizerConfig(name="adam")) == 3 * table
    assert users(optimizer=OptimizerConfig(name="rowwise_adagrad")) == table + table // 64
    rowwise = OptimizerConfig(name="rowwise_adagrad")
    assert users(optimizer=rowwise, table_dtype="bfloat16") == table // 2 + table // 64


def test_a_model_too_large_for_its_devices_is_refused_before_it_is_made() -> None:
    huge = sasrec.Config(num_items=2**33, dim=64)
    with pytest.raises(UserError) as refused:
        plan_of(MeshConfig(model=8, memory_gb=16), huge)
    text = str(refused.value)
    assert "needs 512.0" in text and "a device has 16.00 GiB" in text
    assert "'items', 8,589,934,593 x 64" in text and "config.mesh.model=8 now" in text
    plan_of(MeshConfig(model=8, memory_gb=600), huge)


def test_tables_on_the_host_take_nothing_of_the_device() -> None:
    plan = plan_of(MeshConfig(tables="host"))
    assert placements(plan) == {"users": "host", "items": "replicated"}
    assert plan.layout.on_host == ("users",)
    assert plan.device_bytes < MIB
