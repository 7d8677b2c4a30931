"""The `slurm:` section of an experiment file: resources of one job, and other sbatch options."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from ablatrix.orchestrator.study import sbatch_options as options
from ablatrix.orchestrator.study.literals import Text
from ablatrix.orchestrator.study.node_layout import Layout

WORD = str | int
Word = Annotated[str, BeforeValidator(options.as_word, json_schema_input_type=WORD | list[WORD])]
Count = Annotated[int, BeforeValidator(options.as_count)]
Switch = Annotated[bool, BeforeValidator(options.as_switch)]
Memory = Annotated[str, BeforeValidator(options.as_memory, json_schema_input_type=WORD)]
Time = Annotated[str, BeforeValidator(options.as_time, json_schema_input_type=WORD)]
Gpus = Annotated[int | str, BeforeValidator(options.as_gpus)]
Comment = Annotated[str, BeforeValidator(options.as_comment, json_schema_input_type=WORD)]
Cluster = Annotated[str, BeforeValidator(options.as_cluster, json_schema_input_type=WORD)]
Setup = Annotated[list[Text], BeforeValidator(options.as_lines, json_schema_input_type=str | list[str])]
OptionName = Annotated[str, AfterValidator(options.checked_name)]
HelperOption = Annotated[str, AfterValidator(options.checked_helper_name)]
VALUE = str | int | bool | None | list[WORD]
OptionValue = Annotated[str | bool, BeforeValidator(options.as_value, json_schema_input_type=VALUE)]


class SlurmSettings(BaseModel):
    """Resources of one job. The cluster's defaults apply to everything left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    exclude: Word | None = None
    nodes: Count = Field(1, ge=1, description="nodes per job; more than one for runs shared by several processes")
    gpus_per_node: Gpus = Field(0, description="number of GPUs, or types and numbers: `a100:2`")
    processes_per_node: Count | None = Field(
        None, ge=1, description="processes per node that share a run (trainer.strategy); default: one per GPU"
    )
    cpus_per_task: Count = Field(1, ge=1, description="cores per node")
    mem: Memory | None = Field(None, description="memory per node: `16G`; a number without a unit is in MB")
    time: Time = Field("01:00:00", description="time limit of a job: HH:MM:SS, D-HH:MM:SS, or minutes")
    max_parallel: Count | None = Field(None, ge=1, description="jobs of the study that run at once")
    runs_per_job: Count = Field(1, ge=1, description="small runs side by side in one job, sharing its GPU and cores")
    signal_seconds: Count = Field(
        120, ge=10, description="how long before the time limit a job is signaled to checkpoint"
    )
    comment: Comment | None = Field(None, description="job comment required by the site; Ablatrix appends its own mark")
    requeue: Switch = Field(True, description="false where the site forbids it: submit again to continue a stopped run")
    clusters: Cluster | None = Field(
        default_factory=options.cluster_of_shell, description="cluster to submit to (sbatch -M); default: this one"
    )
    setup: Setup = Field([], description="shell lines to run before the trainer, such as `module load cuda`")
    extra: dict[OptionName, OptionValue] = Field({}, description="other sbatch options: {nodelist: node1}")
    helper_jobs: dict[HelperOption, OptionValue] = Field(
        {}, description="sbatch options for the small jobs without a GPU (report, next wave): {partition: cpu}"
    )

    @model_validator(mode="before")
    @classmethod
    def _move_named_options(cls, data: Any) -> Any:
        """Move options that have their own setting out of `extra`: `extra: {p: gpu}` is `partition: gpu`."""
        if isinstance(data, dict):  # a key without a value counts as missing
            data = {key: value for key, value in data.items() if value is not None}
        if not isinstance(data, dict) or not isinstance(data.get("extra"), dict):
            return data
        options.refuse_twice(map(str, data["extra"]))
        moved, extra = {}, {}
        for key, value in data["extra"].items():
            name, value = options.named(str(key), value, cls.model_fields)
            if name in cls.model_fields and name not in data and name not in moved:
                moved[name] = value
            else:
                extra[key] = value
        return {**data, **moved, "extra": extra}

    @field_validator("extra", "helper_jobs", mode="after")
    @classmethod
    def _check_extra(cls, extra: dict[str, str | bool]) -> dict[str, str | bool]:
        return options.checked(extra)

    @model_validator(mode="after")
    def _ask_for_gpus_once(self) -> SlurmSettings:
        if self.gpus_per_node and options.gpus_in(self.extra, self.nodes):
            raise ValueError("gpus_per_node and slurm.extra both ask for GPUs; keep one of them")
        return self

    @property
    def gpu_count(self) -> int:
        """GPUs per node of a job, of any type, requested by any option."""
        return options.count_gpus(self.gpus_per_node) or options.gpus_in(self.extra, self.nodes)

    @property
    def layout(self) -> Layout:
        """The processes that share a run (trainer.strategy)."""
        return Layout(self.nodes, self.processes_per_node or max(1, self.gpu_count))
