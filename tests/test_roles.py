"""The list of roles."""

from sinkscope.roles import (
    ATTENDED_ROLES,
    MEASURED_ROLES,
    OPTIONAL_ROLES,
    ROLE_INDEX,
    ROLES,
    SELECTIONS,
    TEXT_ROLES,
    is_selection,
)


def test_roles_are_numbered_in_order_and_pad_is_the_last():
    assert [ROLE_INDEX[name] for name in ROLES] == list(range(len(ROLES)))
    assert ROLES[-1] == "pad"
    assert (*ATTENDED_ROLES, "pad") == (*MEASURED_ROLES, *OPTIONAL_ROLES, "pad") == ROLES
    assert len(set(ROLES)) == len(ROLES) < 128  # kept as int8


def test_roles_of_the_contract_are_there():
    wanted = {"bos", "system", "user", "text", "image", "punctuation", "newline", "pad", "generated"}
    assert wanted <= set(ROLES)
    assert set(TEXT_ROLES) < set(ATTENDED_ROLES)
    assert "image" not in TEXT_ROLES


def test_selections_are_no_roles():
    assert not set(SELECTIONS) & set(ROLES)
    assert all(map(is_selection, (*ROLES, *SELECTIONS)))
    assert not is_selection("everything")
