"""Abilities of DuckDB that SQLAlchemy's tests ask for, where they are others than those of most databases."""

from typing import Any

from sqlalchemy.testing import exclusions
from sqlalchemy.testing.requirements import SuiteRequirements

_YES: Any = property(lambda _requirements: exclusions.open())
_NO: Any = property(lambda _requirements: exclusions.closed())


class Requirements(SuiteRequirements):
    """DuckDB's abilities."""

    array_type = _YES
    autocommit = _YES
    boolean_col_expressions = _YES
    comment_reflection = _YES
    comment_reflection_full_unicode = _YES
    computed_columns = _YES
    computed_columns_reflect_persisted = _YES
    computed_columns_virtual = _YES
    ctes = _YES
    ctes_with_update_delete = _YES
    ctes_with_values = _YES
    date_historic = _YES
    datetime_historic = _YES
    datetime_literals = _YES
    datetime_timezone = _YES
    delete_from = _YES
    except_ = _YES
    expression_server_defaults = _YES
    has_temp_table = _YES
    index_ddl_if_exists = _YES
    infinity_floats = _YES
    intersect = _YES
    isolation_level = _YES
    json_type = _YES
    nullsordering = _YES
    precision_numerics_many_significant_digits = _YES
    precision_numerics_retains_significant_digits = _YES
    reflect_table_options = _YES
    reflects_indexes_w_expressions = _YES
    regexp_match = _YES
    regexp_replace = _YES
    schema_create_delete = _YES
    schemas = _YES
    server_defaults = _YES
    supports_distinct_on = _YES
    table_ddl_if_exists = _YES
    table_value_constructor = _YES
    temp_table_names = _YES
    temporary_views = _YES
    timestamp_microseconds = _YES
    tuple_in = _YES
    unicode_ddl = _YES
    update_from = _YES
    uuid_data_type = _YES
    views = _YES
    window_functions = _YES

    # DuckDB gives constraints names of its own.
    named_constraints = _NO
    foreign_key_constraint_name_reflection = _NO
    # No foreign key changes or deletes the rows that refer to a row.
    on_update_cascade = _NO
    # A row that refers to its own table must come in a statement after the one it refers to.
    self_referential_foreign_keys = _NO
    # There are neither savepoints nor columns that are GENERATED AS IDENTITY.
    identity_columns = _NO
    savepoints = _NO
    # Foreign keys stay within a schema.
    cross_schema_fk_reflection = _NO

    def get_order_by_collation(self, config: object) -> str:
        """Return a collation that orders text without regard to case."""
        del config
        return "NOCASE"
