"""The registry of forms: the ways to write one kernel as a sequence of smaller ones."""

from converter.decomposition.form import Form
from converter.decomposition.forms.cp import flattened, lvh, lvh2, separable
from converter.decomposition.forms.svd import channel, decoupled, dense, spatial
from converter.decomposition.forms.tucker import tucker
from converter.errors import ConverterError

__all__ = ["FORMS", "Form", "find_form", "register"]

FORMS: dict[str, Form] = {
    form.name: form
    for form in (flattened, separable, lvh, lvh2, spatial, tucker, dense, channel, decoupled)
}


def register(form: Form) -> None:
    """Make ``form`` known by its name: it is timed, searched and reported as the others are."""
    FORMS[form.name] = form


def find_form(name: str) -> Form:
    """Look a form up.

    Raises:
        ConverterError: When there is none of that name.
    """
    if name not in FORMS:
        raise ConverterError(f"There is no form {name!r}; use one of {', '.join(FORMS)}.")
    return FORMS[name]
