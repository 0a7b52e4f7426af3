"""The authors' stage 3 by epoch, with what choosing the best one is worth (paper section 7, Table D)."""

from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from paperlib.evaluation.audit import LAST, SETTLED, SelectionNoise, selection_noise
from paperlib.evaluation.paper_numbers import reported
from paperlib.run import Run


def selection_figure(noise: SelectionNoise) -> Figure:
    """Validation PSNR of every epoch, the mean of the last ones with its scatter, and the epoch that was reported."""
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    axes.plot(noise.epochs, noise.psnr, marker=".", markersize=3, linewidth=0.8)
    axes.axvline(SETTLED, linestyle=":", linewidth=1)
    axes.annotate("grids frozen", (SETTLED, noise.psnr.min()), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhspan(noise.settled - noise.scatter, noise.settled + noise.scatter, alpha=0.15)
    axes.axhline(noise.settled, linewidth=1, linestyle="--",
                 label=f"mean of the last {LAST} epochs {noise.settled:.3f} dB, ± {noise.scatter:.3f} between epochs")
    best = int(noise.psnr.argmax())
    axes.plot(noise.epochs[best], noise.best, "o", markersize=7, fillstyle="none",
              label=f"reported: the best epoch, {noise.best:.3f} dB")
    axes.set(xlabel="epoch of stage 3 (the authors' log)", ylabel="PSNR RGB on the reported images (dB)")
    axes.legend(fontsize=8, loc="lower right")
    plt.close(figure)
    return figure


def selection_section(run: Run) -> Markdown:
    """The figure, displayed and saved, and two sentences; where the authors' log is not at hand, how to get it."""
    noise = selection_noise()
    if noise is None:
        return Markdown("*The authors' log is not at hand: `paperlib verify` downloads it (3 MB), or set "
                        "`PAPERLIB_ASSETS` to a folder that holds their release as `aio_mai/`.*")
    display(run.figure("07_selection", selection_figure(noise)))
    teacher, direct = (reported()["D", row, "int8", "psnr"] for row in ("qat_teacher", "qat_direct"))
    return Markdown(
        f"The best of {len(noise.psnr)} epochs, chosen on the images that are reported, is "
        f"{noise.best - noise.settled:.3f} dB above the mean of the last {LAST}; epochs scatter by "
        f"{noise.scatter:.3f} dB. Table D's {teacher - direct:.3f} dB is a difference of two such "
        "maxima, of one run each.")
