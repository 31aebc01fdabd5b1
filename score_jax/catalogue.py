"""All samplers as a table for reading: name, order, network evaluations of a step, source."""

from typing import NamedTuple

from score_jax import samplers, sde, solve

_ODE_SOURCES = {
    "euler": "Euler",
    "heun": "Heun",
    "tsit5": "Tsitouras 2011",
    "dopri5": "Dormand & Prince 1980",
    "dopri8": "Prince & Dormand 1981",
    "kvaerno3": "Kvaerno 2004; implicit",
    "kvaerno5": "Kvaerno 2004; implicit",
}
_ADAMS_SOURCE = "Bashforth & Adams 1883"
# with additive noise
_SDE_SOURCES = {
    "euler": ("weak 1", "Maruyama 1955"),
    "shark": ("weak 2", "Foster et al. 2023, arXiv 2210.17543"),
    "sra1": ("weak 2", "Roessler 2010"),
    "spark": ("weak 2", "Foster & Jelincic 2023, arXiv 2311.14201"),
}


class Row(NamedTuple):
    """A sampler as words: `name` is what config.sample.name takes, with its solver behind it if it has any."""

    name: str
    order: str
    evaluations: str
    source: str


def rows() -> list[Row]:
    """One row for each sampler, and for each solver of those by diffrax."""
    stepping = [
        Row(name, entry.order, str(entry.make(sde.edm()).evaluations), entry.source)
        for name, entry in samplers.SAMPLERS.items()
    ]
    others = [
        Row(
            "predictor_corrector",
            "weak 1",
            "1 + corrector_steps",
            "Song et al. 2021, arXiv 2011.13456, algorithm 1",
        ),
        Row(
            "annealed_langevin", "-", "n_levels", "Song & Ermon 2019, arXiv 1907.05600, algorithm 1"
        ),
        Row("langevin", "weak 1", "1", "Song & Ermon 2019, arXiv 1907.05600, eq. 4"),
    ]
    by_ode = [
        Row(
            f"probability_flow solver={name}",
            str(method().order(None)),
            f"{solve.ode_evaluations(name, 0)[1]}" + " + 2 d" * solve.is_implicit(name),
            _ODE_SOURCES[name],
        )
        for name, method in solve.ODE_SOLVERS.items()
    ]
    by_ode += [
        Row(f"probability_flow solver={name}", str(order), "1", _ADAMS_SOURCE)
        for name, order in solve.MULTISTEP.items()
    ]
    by_sde = [
        Row(f"reverse_sde solver={name}", order, str(solve.SDE_SOLVERS[name][1]), source)
        for name, (order, source) in _SDE_SOURCES.items()
    ]
    return stepping + others + by_ode + by_sde


def table() -> str:
    """The rows in columns, under a headline."""
    lines = [Row("SAMPLER", "ORDER", "EVALUATIONS A STEP", "SOURCE"), *rows()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda row: "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
    return "\n".join(pad(row).rstrip() for row in lines)
