"""Write AWS IAM policies for the roles of a recipe, from the URIs that it names.

Actions, condition keys and trust policies are those of AWS's documentation (Amazon S3, EKS Pod
Identity, IRSA).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tailorbird.config.recipe import Recipe
from tailorbird.release.kube_documents import Document
from tailorbird.storage.s3 import parse

READ = ("s3:GetObject",)
CREATE = ("s3:PutObject", "s3:AbortMultipartUpload")
WRITE = (*READ, *CREATE, "s3:DeleteObject")
ACCOUNT_ID = re.compile(r"\d{12}")


@dataclass(frozen=True)
class Cluster:
    """The Kubernetes service accounts that may use the roles.

    With `oidc_provider` (the cluster's issuer without `https://`) and the 12 digits of
    `account_id`, pods get a role by the annotation of their service account (IRSA); without both,
    by an association of EKS Pod Identity.
    """

    namespace: str
    account_id: str | None = None
    oidc_provider: str | None = None

    def __post_init__(self) -> None:
        if (self.account_id is None) != (self.oidc_provider is None):
            raise ValueError(
                "give both --account-id and --oidc-provider for IRSA, or neither for EKS Pod "
                "Identity"
            )
        if self.account_id is not None and not ACCOUNT_ID.fullmatch(self.account_id):
            raise ValueError(
                f"--account-id {self.account_id!r} is not the 12 digits of an AWS account"
            )


@dataclass(frozen=True)
class _Rights:
    """The URIs that a role may use; each is an object or a folder."""

    read: tuple[str, ...] = ()
    create: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    list_bucket: tuple[str, ...] = ()
    """URIs whose whole bucket the role may list."""


def role_documents(recipe: Recipe, *, cluster: Cluster) -> dict[str, Document]:
    """Return the policies and trust policies of the three service accounts, by file name without
    suffix.

    URIs on other stores than S3 are omitted. Raises ValueError if the registry is not on S3.
    """
    if not recipe.registry.startswith("s3://"):
        raise ValueError(
            f"registry {recipe.registry!r} is not on S3; set an s3:// URI, to which roles can have "
            "access"
        )
    rights = {
        "training": _training_rights(recipe),
        "release": _release_rights(recipe),
        "serving": _serving_rights(recipe),
    }
    documents: dict[str, Document] = {}
    for account, account_rights in rights.items():
        documents[f"{account}-policy"] = _policy(account_rights)
        documents[f"{account}-trust"] = _trust(account, cluster=cluster)
    return documents


def _training_rights(recipe: Recipe) -> _Rights:
    """Return the rights of runs and of `watch`.

    Ray stores checkpoints with pyarrow, which sends HeadBucket before it creates a folder. AWS
    allows this request only to a role that may list the whole bucket (apache/arrow#49949).
    """
    registry = recipe.registry
    return _Rights(
        read=_on_s3(*_inputs(recipe), recipe.serving.request_log),
        write=(recipe.task_uri, f"{registry}/_base", f"{registry}/_ledger"),
        list_bucket=(registry,),
    )


def _release_rights(recipe: Recipe) -> _Rights:
    """Return the rights of `promote`, `rollback` and `serve`."""
    return _Rights(
        read=(*_on_s3(*_inputs(recipe), recipe.serving.api_keys), f"{recipe.registry}/_base"),
        write=(recipe.task_uri,),
    )


def _inputs(recipe: Recipe) -> tuple[str | None, ...]:
    data = recipe.data
    encoder = recipe.evaluation.retrieval_encoder
    uris = [*data.train_uris, data.validation, data.test]
    uris += [base_model.folder for base_model in recipe.base_models]
    if encoder is not None:
        uris.append(encoder.folder)
    return tuple(uris)


def _serving_rights(recipe: Recipe) -> _Rights:
    """Return the rights of replicas."""
    serving = recipe.serving
    registry = recipe.registry
    return _Rights(
        read=(recipe.task_uri, f"{registry}/_base", *_on_s3(serving.api_keys)),
        create=_on_s3(serving.request_log),
    )


def _on_s3(*uris: str | None) -> tuple[str, ...]:
    return tuple(uri for uri in uris if uri is not None and uri.startswith("s3://"))


def _policy(rights: _Rights) -> Document:
    statements = [
        {"Sid": name, "Effect": "Allow", "Action": [*actions], "Resource": _object_arns(uris)}
        for name, actions, uris in (
            ("Read", READ, rights.read),
            ("Create", CREATE, rights.create),
            ("Write", WRITE, rights.write),
        )
        if uris
    ]
    whole = {_bucket_and_key(uri)[0] for uri in rights.list_bucket}
    for bucket in sorted(whole):
        statements.append(_list_statement(bucket, prefixes=[], number=len(statements)))
    prefixes: dict[str, list[str]] = {}
    for uri in (*rights.read, *rights.write):
        bucket, key = _bucket_and_key(uri)
        if bucket not in whole:
            prefixes.setdefault(bucket, []).extend(_patterns(key))
    for bucket, keys in sorted(prefixes.items()):
        statements.append(
            _list_statement(bucket, prefixes=sorted(set(keys)), number=len(statements))
        )
    return {"Version": "2012-10-17", "Statement": statements}


def _list_statement(bucket: str, *, prefixes: Sequence[str], number: int) -> Document:
    """Allow to list a bucket, below the prefixes if there are any."""
    statement: Document = {
        "Sid": f"List{number}",
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": _arn(bucket),
    }
    if prefixes:
        statement["Condition"] = {"StringLike": {"s3:prefix": [*prefixes]}}
    return statement


def _object_arns(uris: Sequence[str]) -> list[str]:
    """Return the ARNs of each object, and of the objects below it in case it is a folder."""
    arns = set()
    for uri in uris:
        bucket, key = _bucket_and_key(uri)
        arns |= {_arn(f"{bucket}/{pattern}") for pattern in _patterns(key)}
    return sorted(arns)


def _patterns(key: str) -> list[str]:
    """Return the patterns of a key and of what is below it; an empty key is a whole bucket."""
    if not key:
        return ["*"]
    return [key, f"{key}/*"]


def _bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of a URI, with characters that IAM would expand replaced by
    themselves."""
    bucket, _, key = parse(uri)[1].rstrip("/").partition("/")
    return bucket, re.sub(r"[*?$]", r"${\g<0>}", key)


def _arn(path: str) -> str:
    return f"arn:aws:s3:::{path}"


def _trust(account: str, *, cluster: Cluster) -> Document:
    """Return the trust policy that lets the pods of a service account use the role."""
    if cluster.oidc_provider is None:
        statement: Document = {
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": {
                "StringEquals": {
                    "aws:RequestTag/kubernetes-namespace": cluster.namespace,
                    "aws:RequestTag/kubernetes-service-account": account,
                }
            },
        }
    else:
        provider = cluster.oidc_provider.removeprefix("https://")
        statement = {
            "Principal": {
                "Federated": f"arn:aws:iam::{cluster.account_id}:oidc-provider/{provider}"
            },
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {
                    f"{provider}:sub": f"system:serviceaccount:{cluster.namespace}:{account}",
                    f"{provider}:aud": "sts.amazonaws.com",
                }
            },
        }
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | statement]}
