"""What clients see of a workflow's typed parameters: all that a form needs."""

from strawberry.scalars import JSON

from app.domain import parameters
from app.domain.parameters import ParameterType
from app.interfaces.graphql.declare import attribute, enum, input_type, object_type

enum(
    ParameterType,
    {
        ParameterType.STRING: "Text.",
        ParameterType.INTEGER: "A whole number of at most 2^53 - 1.",
        ParameterType.NUMBER: "A finite number.",
        ParameterType.BOOLEAN: "True or false.",
        ParameterType.SELECT: "The value of one of the options.",
        ParameterType.FILE: "The id of a complete upload.",
    },
    description="What a parameter's value must be.",
)


@object_type()
class ParameterOption:
    """One choice of a select parameter."""

    value: str = attribute("What is sent.")
    label: str = attribute("What a person reads.")


@object_type()
class Parameter:
    """One parameter of a workflow. Limits are inclusive; null is no limit."""

    key: str = attribute("Its name in `parameters`: letters, digits and `_`.")
    type: ParameterType = attribute("What its value must be.")
    label: str = attribute("What a form calls it.")
    description: str = attribute("What a form says about it; may be empty.")
    required: bool = attribute("Whether a value must be given where there is no default.")
    default: JSON | None = attribute("The value that it takes where none is given; null: none.")
    min: float | None = attribute("For integer and number: the least value.")
    max: float | None = attribute("For integer and number: the greatest value.")
    step: float | None = attribute("For integer and number: values are `min` (or 0) plus a multiple of this.")
    min_length: int | None = attribute("For string: how many characters at least.")
    max_length: int | None = attribute("For string: how many characters at most.")
    multiline: bool = attribute("For string: whether a form shows several lines.")
    options: list[ParameterOption] = attribute("For select: the choices, in their order.")
    accept: list[str] = attribute("For file: media types (`image/*`) and extensions (`.png`); empty: any file.")


@input_type()
class ParameterOptionInput:
    """One choice of a select parameter."""

    value: str = attribute("What is sent, unique among the options.")
    label: str | None = attribute("What a person reads; null: the value.", default=None)


@input_type()
class ParameterInput:
    """One parameter of a workflow. What its type does not use must be left out."""

    key: str = attribute("Its name: a letter or `_`, then letters, digits and `_`, at most 64 in all.")
    type: ParameterType = attribute("What its value must be.")
    label: str | None = attribute("What a form calls it; null: the key.", default=None)
    description: str | None = attribute("What a form says about it, at most 2000 characters.", default=None)
    required: bool = attribute("Whether a value must be given where there is no default.", default=False)
    default: JSON | None = attribute("The value that it takes where none is given; never for a file.", default=None)
    min: float | None = attribute("For integer and number: the least value.", default=None)
    max: float | None = attribute("For integer and number: the greatest value.", default=None)
    step: float | None = attribute("For integer and number: the distance of values from each other.", default=None)
    min_length: int | None = attribute("For string: how many characters at least.", default=None)
    max_length: int | None = attribute("For string: how many characters at most.", default=None)
    multiline: bool | None = attribute("For string: whether a form shows several lines.", default=None)
    options: list[ParameterOptionInput] | None = attribute("For select: the choices, at least one.", default=None)
    accept: list[str] | None = attribute("For file: media types and extensions.", default=None)


def parameter(value: parameters.Parameter) -> Parameter:
    """The type of a parameter of the domain."""
    default: JSON | None = value.default
    return Parameter(
        key=value.key,
        type=value.type,
        label=value.label,
        description=value.description,
        required=value.required,
        default=default,
        min=value.min,
        max=value.max,
        step=value.step,
        min_length=value.min_length,
        max_length=value.max_length,
        multiline=value.multiline,
        options=[ParameterOption(value=option.value, label=option.label) for option in value.options],
        accept=list(value.accept),
    )


def definition(given: ParameterInput) -> dict[str, object]:
    """The part of a workflow's document that an input stands for."""
    return {
        "key": given.key,
        "type": given.type,
        "label": given.label,
        "description": given.description,
        "required": given.required,
        "default": given.default,
        "min": given.min,
        "max": given.max,
        "step": given.step,
        "minLength": given.min_length,
        "maxLength": given.max_length,
        "multiline": given.multiline,
        "options": [{"value": each.value, "label": each.label} for each in given.options or ()],
        "accept": given.accept,
    }
