"""Answers in the order of their inputs."""

from tailorbird.interface.answer import Answer


class Answers(tuple[Answer, ...]):
    """Answers in the order of their inputs. A notebook shows them as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from tailorbird.interface.notebook import answers_html

        return answers_html(self)
