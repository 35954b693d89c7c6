"""``Job``: a network, its layers, its data and the options of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from converter.data.data import Data
from converter.decomposition.forms import find_form
from converter.errors import ConverterError
from converter.evaluation.compare import Evaluate
from converter.evaluation.guards import guards
from converter.evaluation.notes import notes
from converter.evaluation.recognize import check_labels, recognize
from converter.evaluation.tasks.regress import Regress
from converter.evaluation.tasks.task import Task
from converter.graph.survey import Layer, survey
from converter.models import match as torch_network
from converter.models.factory import find_callable
from converter.models.problem import Problem, check_held_out, make_problem
from converter.models.source import Model, Source, examples, is_factory, open_source
from converter.options import Options, check_inputs
from converter.processes import (
    TIMEOUT,
    Progress,
    Resources,
    check_device,
    no_progress,
    process_group,
)
from converter.quantization.int8 import check_int8
from converter.reconstruction.parallel import connected
from converter.runtime.ort import OnnxRuntime
from converter.search.plan import read_plan
from converter.training.distill import check_trainable
from converter.training.losses import import_loss


@dataclass(frozen=True)
class Job:
    """The inputs of a conversion.

    Attributes:
        source: The network, its torch model if there is one, and the data.
        problem: The network, its layers, and its sample inputs split for a search.
        options: Options of the conversion.
        resources: Threads, cache, progress and the other processes.
        tasks: What the outputs of the network mean.
        warnings: Sentences on the network and the inputs that the user should read.
        evaluate: The user's own measure, or None.
    """

    source: Source
    problem: Problem
    options: Options
    resources: Resources
    tasks: tuple[Task, ...]
    warnings: tuple[str, ...] = ()
    evaluate: Evaluate | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the network, in graph order."""
        return self.problem.layers

    def for_network(self, source: Source) -> Job:
        """Return the same job for another network."""
        seed = self.options.resources.seed
        problem = make_problem(source, list_layers(source, seed), seed)
        return replace(self, source=source, problem=problem)


def open_job(
    model: Model,
    options: Options,
    example_input: object = None,
    evaluate: Evaluate | None = None,
    progress: Progress = no_progress,
) -> Job:
    """Load a network and its data, and check that the options can be carried out.

    Raises:
        ConverterError: When the model, the data or an option cannot be used.
    """
    check_inputs(options, evaluate is not None)
    if is_factory(model):
        find_callable(str(model), "Factory")  # its module may register forms
    options = check_options(options)
    source = open_source(model, example_input, options)
    check_held_out(source, options, evaluate is not None)
    group = process_group(options.resources.device, TIMEOUT)
    training = options.training
    if options.search.int8:
        check_int8(source.network, source.calib is not None)
    if training.schedule > 1 and training.trains and source.module is None:
        raise ConverterError("--schedule needs a torch model, not an ONNX network.")
    if training.schedule > 1 and group.size > 1:
        raise ConverterError("--schedule works in one process; leave out accelerate launch.")
    if training.trains:
        check_trainable(source, options, group.size)
    return job_of(source, options, Resources.of(options, group, progress), evaluate)


def job_of(
    source: Source, options: Options, resources: Resources, evaluate: Evaluate | None
) -> Job:
    """List the layers of a network, split its sample inputs, and find what its outputs mean.

    Raises:
        ConverterError: When a task or labels do not fit the outputs.
    """
    seed = options.resources.seed
    problem = make_problem(source, list_layers(source, seed), seed)
    tasks = tasks_of(problem, source, options)
    if source.eval is not None:
        check_labels(source.eval, tasks)
    warnings = source.notes + tuple(
        task.doubt for task in tasks if isinstance(task, Regress) and task.doubt
    )
    return Job(source, problem, options, resources, tasks, warnings, evaluate)


def input_warnings(job: Job, model: Model) -> tuple[str, ...]:
    """Say what looks wrong about the inputs, or forgotten, before minutes are spent on them."""
    source, options = job.source, job.options
    said = notes(model, options, source, job.layers)
    data = source.eval or source.calib
    if data is None:
        return said
    threads = options.timing.threads
    guarded = guards(source.network, data, job.tasks, options.images, job.layers, threads)
    return (*guarded.warnings, *guarded.notes, *said)


def tasks_of(problem: Problem, source: Source, options: Options) -> tuple[Task, ...]:
    """Find what the outputs mean: from labelled inputs if there are any, else from sample inputs.

    Raises:
        ConverterError: When a task of ``--task`` does not fit.
    """
    labelled = (data for data in (source.eval, source.calib) if data and _has_labels(data))
    data = next(labelled, source.eval or problem.holdout)
    return recognize(source.network, data, dict(options.data.task), options.timing.threads)


def _has_labels(data: Data) -> bool:
    return data.labels is not None or data.load_batch is not None


def check_options(options: Options) -> Options:
    """Check before the network is loaded what is used only after minutes of solving.

    Returns:
        The options; with ``--plan``, the seed is that of the plan.

    Raises:
        ConverterError: When a form, execution provider, device, cluster or plan does not exist.
    """
    OnnxRuntime.of(options.timing)
    check_device(options.resources.device)
    if options.training.loss:
        import_loss(options.training.loss)
    if options.resources.cluster:
        with connected(options.resources.cluster):  # raises if there is no worker
            pass
    _check_forms(options)
    plan = options.layers.plan
    return options if plan is None else options.changed(seed=read_plan(plan).seed)


def _check_forms(options: Options) -> None:
    """Check the forms that are chosen by hand.

    Raises:
        ConverterError: When there is no such form, or tensorly is to solve it and cannot.
    """
    names = [text.rpartition("=")[2] for text in options.layers.forms]
    names += [wish.form for wish in options.layers.layers.values() if wish is not None]
    for form in map(find_form, names):
        if options.search.solver != "flatconv" and form.solve_with_tensorly is None:
            raise ConverterError(
                f"tensorly cannot decompose a kernel into the form {form.name}; use --solver "
                "flatconv."
            )


def list_layers(source: Source, seed: int) -> tuple[Layer, ...]:
    """List the convolutions and linear layers."""
    feeds = examples(source, seed, 1)
    layers = survey(source.network, feeds)
    if source.module is None:
        return layers
    return torch_network.match(source.module, layers, feeds)
