"""What is measured, one file a question.

A suite's `measure` returns one document, plain data: `schema` (`nst-bench-<suite>/1`), `date`, `machine`
(`nst_bench.machine`), `model` where there is one, and rows. A row says what it is of, and then either has the
fields of `nst_bench.measure.Summary` (milliseconds), or `missing`, the reason in words why there are none. Where the
arithmetic is known, a row of the steady state also has `gflop` (of what that engine runs for one picture),
`share_of_matrix_rate` and `share_of_bandwidth` (`machine.roofline`). `SHORT`, `FULL` and, on a GPU, `CARD` of a suite
are its efforts. A document that was cut short has the reason under `stopped`, and what was measured until then.

`latency`
    `model`: `name`, `network`, the network's arguments, `parameters`. `rows`: `engine`, `device` (`CPU` or `GPU`),
    `size` (side in pixels), `phase` (`cold`: load and first picture, `size` null; `first of a shape`; `steady`),
    `levels` (steady state: the largest difference from the picture of PyTorch on the processor, of 255).
`serving`
    `model`: `name`, `network`, `width`, `styles`, `precision`, `provider`, `instances`, `threads` (null on a GPU),
    `seconds_to_ready`. `latency`: rows of `size`, `way`, a summary, `ratio` (to the bare session). `throughput`, at the
    size of the arrivals, and `throughput_by_size`, a list of the others: `size`, `requests` (a turn's), `bare` (`rate`,
    pictures a second, and its turns' `rates`), `rows` of `callers`, `rate`, `rates`, `ratio` (to the bare sessions),
    `against_one` (to one caller's), a summary of the latency, `batch`, `batches`, `mean`, `queue`, `compute`, `rest`.
    `mixed`, if measured: `sides`, `rows` with `mixture`, `callers`, `one_caller` (pictures a second of one caller that
    paints the same) and the rest as above. `slowest_against_one`: `ratio`, the lowest `against_one` of callers at once,
    and `who` has it. `arrivals`: `size`, `limit`, `percentile`, `rate`, `rows`.
`styles`
    `network`, its arguments without the styles. `rows`: `form` (the graph alone, or served), `styles` (a model of one,
    one of ten, a mix of ten), `size`, a summary, `ratio` (to the median of the model of one style).
`energy`
    `model`: `name`, `precision`. `iterations` (of the optimisation for an image), `idle_watts`, `idle_subtracted`
    (false). `rows`: `what`, `size`, `pieces` (images, or iterations of the optimisation), `seconds`, `watts` (mean),
    `joules` (an image), `ratio` (to the network's without a server). Of the whole card, by its own counter.
`cold`
    `model`: `name`. `rows`: `what` (one of `cold.WHAT`), `height` and `width` (pixels, or null), `warmed_up` (whether
    the server's own warm-up has seen this shape, or null).
`speedup`
    `model` as in `latency`. `device` (`CPU` or `GPU`) of both. `rows`: `engine`, `size`, `phase`. `speedup`: `size`,
    `iterations` (100, 300, 500), `gatys_seconds` (scaled from the median iteration), `served` (the engine),
    `served_ms`, `ratio`. `equal_loss`: `size`, `photo`, `loss` (the network's), `iteration` (the first of the
    optimisation at or below it), `curve` (its losses until then), `gatys_seconds`, `served_ms` and `ratio` over gRPC,
    `shared_memory_ms` and `shared_memory_ratio`; or `size` and `missing`.
`frontier`
    `style` (the painting's file), `photos` (names), `quality_size` (side in pixels). `rows`, by time: `name`,
    `network`, `arguments`, `parameters`, `loss`, `content`, `style` (means), `worth` (median), `size`, a summary of one
    picture, `best_for_its_time` (no faster row has a loss as low).
`methods`
    `methods`: `method`, `network`, `parameters`, `styles` (of one network, or null: any), `loss` (`value`, `size`,
    `photos`, `of`; or `missing`), `new_style` (`seconds`, `from`; or `missing`). `rows`: `method`, `size`, `trained`,
    `iterations` (1, or of the optimisation, for a picture), a summary of the milliseconds of one pass or iteration,
    `picture_seconds` (`iterations` times the median), `peak_mib` (resident memory of its own process).
`peers`
    `model` as in `latency`, `environment` (`python`, `packages`: versions by name), `command` (repeats it). `rows`:
    `peer`, `package` (as pip knows it), `version`, `way` (`in a process`, `HTTP`, `gRPC`), `runs` (`the same file`, or
    what else), `engine`, `size`, `phase`, `ratio` (of the median to nst's own by the same way, steady state only),
    `levels` (the largest difference from nst's picture, of 255; null for another network).
`video`
    `model`: `name`. `width`, `height` (pixels), `film_rate` (frames a second). `rows`: `way` (`bare session`, `file to
    file`, `file to window`), a summary of the time from a frame to the next, `frames_per_second` (all included, the
    median of the rounds), `share_of_bare`; and of `file to window, latency`, with `shown` and `taken` frames.
"""
