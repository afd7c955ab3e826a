"""What the search for a better memory mapping found: before, after, pictures and options."""

from xml.etree import ElementTree

from autoshard.explain import MAPPING_COLUMNS, mapping_rows
from autoshard.html_report.markup import Node, clean, element, paragraph, table
from autoshard.html_report.section import Section, folded, remark
from autoshard.memory_record import BASIS, MemoryPicture
from autoshard.plan import Plan
from memory_planner.picture import draw_svg

_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'  # within HTML it says nothing


def memory_mapping_section(plan: Plan, pictures: tuple[MemoryPicture, ...]) -> Section | None:
    """Before and after; nothing where no mapping was searched."""
    record = plan.memory_mapping
    if record is None:
        return None
    body: list[Node] = [
        paragraph(
            f"Which buffers lie in VMEM when, chosen through options of the compiler: {BASIS}."
        ),
        table("A step on one device", MAPPING_COLUMNS, mapping_rows(record), numbers=range(1, 6)),
        remark(
            f"{record.buffers} buffers, {record.assignments} assignments and {record.compiles} "
            f"compilations of libtpu {record.libtpu}."
        ),
    ]
    body += [_figure(picture) for picture in pictures]
    if not pictures:
        body.append(remark("No pictures: the plan brought its mapping, and nothing was searched."))
    if plan.compiler_options:
        lines = "\n".join(f"{name} = {value}" for name, value in plan.compiler_options)
        body.append(folded("Compiler options", element("pre", lines)))
    else:
        body.append(paragraph("The compiler's own mapping is the best that was found."))
    return Section("memory-mapping", "Memory mapping", tuple(body))


def _figure(picture: MemoryPicture) -> ElementTree.Element:
    """VMEM over time. The SVG is ours and holds no names that are not escaped."""
    text = clean(draw_svg(picture.problem, picture.mapping)).replace(_NAMESPACE, "", 1)
    words = f"VMEM under the {picture.name} mapping: addresses over the operations of the schedule."
    return element(
        "figure",
        element("h3", f"VMEM, {picture.name}"),
        ElementTree.fromstring(text),
        element("figcaption", words),
    )
