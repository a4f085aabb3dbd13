"""Commands that release a version."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tailorbird.cli import options


def promote(
    recipe: options.RecipePath,
    version: Annotated[
        str | None, typer.Option(help="Name or URI. Default: winner of the latest run.")
    ] = None,
    override: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Reason to promote a version that was rolled back (stored)."
        ),
    ] = None,
) -> options.Result:
    """Make the winner of a run the champion, and switch a running service to it.

    The parity gate first checks that the service answers test rows as the model did in its
    evaluation.

    Example: tailorbird promote recipes/icd10_demo.yaml
    """
    task_uri = options.read_recipe(recipe).task_uri
    with options.deploy_progress() as progress:
        from tailorbird.release.promotion import promote_version

        champion = promote_version(task_uri, version=version, override=override, progress=progress)
    lines = [f"champion: {champion.version}, {champion.reason.sentence()}"]
    if champion.parity is not None:
        lines.append(champion.parity.sentence())
    else:
        lines.append(f"it is not served yet; to serve it: tailorbird serve {shlex.quote(recipe)}")
    return champion.model_dump(), lines


def rollback(
    recipe: options.RecipePath,
    reason: Annotated[str, typer.Option(help="Reason, stored with the champion.")],
) -> options.Result:
    """Make the previous champion the champion again, and switch a running service to it.

    Example: tailorbird rollback recipes/icd10_demo.yaml --reason "complaints about burns"
    """
    task_uri = options.read_recipe(recipe).task_uri
    with options.deploy_progress() as progress:
        from tailorbird.release.promotion import roll_back

        champion = roll_back(task_uri, reason=reason, progress=progress)
    lines = [f"champion: {champion.version}, {champion.reason.sentence()}"]
    return champion.model_dump(), lines


def serve(
    recipe: options.RecipePath,
    overrides: options.Overrides = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the service of this task only.")
    ] = False,
) -> options.Result:
    """Serve the champion on Ray Serve, or update a running service.

    Example: tailorbird serve recipes/icd10_demo.yaml serving.autoscaling.max_replicas=2

    Example: tailorbird serve recipes/icd10_demo.yaml 'serving.challenger={version: candidate,
    shadow: 0.5}'

    Example: tailorbird serve recipes/icd10_demo.yaml --stop
    """
    loaded = options.read_recipe(recipe, overrides)
    if stop:
        with options.activity(f"stopping the service of {loaded.name}"):
            from tailorbird.release.serving import stop_service

            stop_service(loaded.task_uri)
        return {"stopped": loaded.name}, [f"{loaded.name} is no longer served"]
    with options.deploy_progress() as progress:
        from serving.deploy.readiness import replica_status
        from serving.served_tasks import SERVED_TASKS
        from tailorbird.release.serving import serve_champion

        url, version = serve_champion(loaded.serving, task_uri=loaded.task_uri, progress=progress)
    lines = [f"{version.version} is served at {url}{SERVED_TASKS[version.task].route}"]
    challenger = None
    if loaded.serving.challenger:
        challenger = replica_status(url).challenger
        lines += [
            f"challenger: {challenger or 'none, because it has the same weights as the champion'}"
        ]
    if loaded.serving.api_keys:
        lines.append("clients need an API key")
    else:
        lines.append("no API keys: serving.api_keys is not set")
    lines += [f"to stop it: tailorbird serve {shlex.quote(recipe)} --stop"]
    value = {
        "url": url,
        "version": version.version,
        "digest": version.digest,
        "challenger": challenger,
    }
    return value, lines


def score(
    recipe: options.RecipePath,
    input: Annotated[str, typer.Option(help="s3:// URI of a Parquet file or folder.")],
    output: Annotated[
        str, typer.Option(help="s3:// URI of an empty folder, or of this batch to resume it.")
    ],
    model: Annotated[
        str, typer.Option(help="`champion`, `baseline`, or a version's name or URI.")
    ] = "champion",
    column: Annotated[str | None, typer.Option(help="Text column. Default: the recipe's.")] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="Input column to copy to the output as `id`.")
    ] = None,
) -> options.Result:
    """Score every row of a Parquet data set with one version, on the cluster.

    A rerun with the same output resumes.

    Example: tailorbird score recipes/icd10_demo.yaml --input s3://lake/icd10/test --output
    s3://lake/scored
    """
    from dataclasses import asdict

    with options.connected_recipe(recipe, None) as (loaded, progress):
        from serving.batch_jobs.scoring import new_batch, resolve_version, score_batch
        from tailorbird.evaluation.inference.endpoint_requests import RequestLimits

        version = resolve_version(loaded.task_uri, model)
        column = column or loaded.input_column
        batch = new_batch(version, input=input, output=output, column=column, id_column=id_column)
        limits = None
        if loaded.evaluation.endpoints:
            limits = RequestLimits.from_config(loaded.evaluation)
        progress.activity("scoring")
        result = score_batch(batch, loaded.serving, version=version, limits=limits)
    value = asdict(result) | {"version": version.version, "digest": version.digest}
    return value, [result.line(), f"manifest: {result.manifest}"]


def key(
    name: Annotated[str, typer.Argument(help="Name of the client.")],
    scopes: Annotated[
        str,
        typer.Option(
            help="What the key may do: answer, feedback, read, admin; separated by commas."
        ),
    ] = "answer,feedback",
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Last day (UTC) on which the key is valid. Default: no end."
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Maximum requests per minute and replica.")
    ] = None,
    texts: Annotated[int | None, typer.Option(help="Maximum texts per minute and replica.")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens per minute and replica.")
    ] = None,
) -> options.Result:
    """Create an API key and print it with the line for the file that serving.api_keys names.

    The line holds a hash of the key, its scopes, its last day and its limits. The key itself is not
    stored.

    Example: tailorbird key mobile-app --expires 2027-06-30 --requests 600 --tokens 1000000
    """
    with options.activity("loading the format of keys"):
        from serving.http.api_keys import new_key

    settings = {
        "scopes": scopes,
        "expires": expires,
        "requests": requests,
        "texts": texts,
        "tokens": tokens,
    }
    words = [f"{option}={value}" for option, value in settings.items() if value is not None]
    key, stored = new_key(name, options=words)
    line = stored.to_line()
    return {"key": key, "line": line}, [f"key (shown only once): {key}", f"line to store: {line}"]


def render(
    recipe: options.RecipePath,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="preflight, rayjob, rayservice, promote, prove, watch, monitoring or serve.",
        ),
    ] = None,
    overrides: options.Overrides = None,
    base: Annotated[
        str | None,
        typer.Option(help="Manifest to fill in; - for standard input. Default: from k8s/."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the RayService. Default: the recipe's.")
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an environment, instead of --to. Requires --output and kubectl."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write (default: standard output); with --overlay, a folder."),
    ] = None,
) -> options.Result:
    """Render a recipe as a Kubernetes manifest or a Ray Serve configuration.

    * preflight: a job that runs `preflight` with the rights of a run

    * rayjob: a run, as a RayJob

    * rayservice: the champion, as a RayService

    * monitoring: a probe of the service, with monitors and alerts for Prometheus

    * promote, prove, watch: jobs that run `promote`, `serve` (for its parity gate) and `watch`

    * serve: a configuration for `serve deploy`

    With --overlay, writes all permanent resources of the task and the environment to a folder, for
    GitOps.

    Example: kubectl kustomize k8s/overlays/prod/job | tailorbird render recipes/my_task.yaml --to
    rayjob --base -

    Example: tailorbird render recipes/my_task.yaml --overlay k8s/overlays/prod --output
    clusters/prod
    """
    if overlay is not None:
        if to is not None or base is not None or output is None:
            raise ValueError(
                "--overlay renders all targets to a folder; give --output, and neither --to nor "
                "--base"
            )
        with options.activity(f"rendering {overlay}"):
            from tailorbird.release.kube_environment import render_environment, write_environment

            written = render_environment(options.read_recipe(recipe, overrides), overlay=overlay)
            write_environment(written, output)
        _print_notes(written.notes)
        files = [str(output / path) for path in written.files]
        return {"files": files, "notes": list(written.notes)}, [f"wrote {file}" for file in files]
    if to is None:
        raise ValueError("give --to TARGET, or --overlay FOLDER --output FOLDER")
    template = None
    if base == "-":
        template = sys.stdin.read()
    elif base is not None:
        template = options.read_text(base)
    with options.activity(f"rendering the manifest {to}"):
        from tailorbird.release.manifests import render_manifest

        manifest = render_manifest(
            options.read_recipe(recipe, overrides), to=to, base=template, name=name
        )
    _print_notes(manifest.notes)
    lines = [manifest.text.removesuffix("\n")]
    if output is not None:
        options.write_file(output, manifest.text.encode())
        lines = [f"wrote {output}"]
    return {"to": to, "text": manifest.text, "notes": list(manifest.notes)}, lines


def iam(
    recipe: options.RecipePath,
    overrides: options.Overrides = None,
    namespace: Annotated[str, typer.Option(help="Namespace of the pods.")] = "tailorbird-prod",
    account_id: Annotated[str | None, typer.Option(help="AWS account, for IRSA.")] = None,
    oidc_provider: Annotated[
        str | None, typer.Option(metavar="HOST/PATH", help="Issuer of the EKS cluster, for IRSA.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for one file per document. Default: print all.")
    ] = None,
) -> options.Result:
    """Write AWS IAM policies for the service accounts of `k8s/`, with the rights that a recipe
    needs.

    Without --account-id and --oidc-provider, the trust policies are for EKS Pod Identity.

    Example: tailorbird iam recipes/my_task.yaml --output policies
    """
    with options.activity("writing the policies"):
        from tailorbird.release.iam import Cluster, role_documents

        cluster = Cluster(namespace, account_id=account_id, oidc_provider=oidc_provider)
        documents = role_documents(options.read_recipe(recipe, overrides), cluster=cluster)
    if output is None:
        return documents, [json.dumps(documents, indent=1)]
    lines = []
    for name, document in documents.items():
        path = output / f"{name}.json"
        options.write_file(path, f"{json.dumps(document, indent=1)}\n".encode())
        lines.append(f"wrote {path}")
    return documents, lines


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
