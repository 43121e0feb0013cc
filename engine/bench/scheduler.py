"""All requests at once: how long the engine takes for them (seeds 000, 001, 003)."""

from engine.bench import report
from engine.bench.measure import Ended
from engine.bench.options import SchedulerOptions
from engine.bench.session import Benchmark, Serve
from engine.bench.workload import Prompts
from engine.llm import LLM


def _serve(llm: LLM, prompts: Prompts, options: SchedulerOptions) -> Serve:
    def serve() -> tuple[list[Ended], list[float]]:
        outputs = llm.generate(prompts, options.params, detokenize=False)
        return [Ended(output.timing, output.finish_reason, output.error) for output in outputs], []

    return serve


BENCHMARK = Benchmark("scheduler", _serve, report.scheduler_run, report.scheduler_summary)
