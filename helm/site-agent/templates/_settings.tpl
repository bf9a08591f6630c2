{{/* site.yaml: the program's settings from values.config, and over them what follows from the other values. */}}
{{- define "site.settings" -}}
{{- $coordinator := dict "enrolment_address" (required "enrolment.coordinator: say host:port where this site enrols, as its invitation says" .Values.enrolment.coordinator) -}}
{{- with .Values.proxy.url -}}
{{- $_ := set $coordinator "proxy" . -}}
{{- end -}}
{{- if .Values.proxy.existingSecret -}}
{{- $_ := set $coordinator "proxy_credentials_file" "/run/wardround/proxy.credentials" -}}
{{- end -}}
{{- $own := dict "coordinator" $coordinator "policy" "/etc/wardround/policy/policy.yaml" "runner" (include "site.runner" . | fromYaml) -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $own "metrics" (dict "host" "0.0.0.0" "port" .Values.metrics.port) -}}
{{- end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $own) -}}
{{- end -}}

{{/* The section `runner` of site.yaml. A Job is the agent's to make, so what it cannot be given is refused here. */}}
{{- define "site.runner" -}}
kind: {{ .Values.runner.kind }}
{{- if eq .Values.runner.kind "kubernetes" }}
{{- $trainer := .Values.trainer }}
{{- if not $trainer.image.digest }}
{{- fail "trainer.image.digest: say which image (sha256:...); with runner.kind kubernetes the agent starts no image by tag" }}
{{- end }}
{{- if ne .Values.jobs.accessMode "ReadWriteMany" }}
{{- fail "jobs.accessMode: with runner.kind kubernetes the folder is mounted by agent and Jobs at once: ReadWriteMany" }}
{{- end }}
{{- if or .Values.data.subPath .Values.models.subPath .Values.data.supplementalGroups }}
{{- fail "data and models: with runner.kind kubernetes neither subPath nor supplementalGroups; make claims that show just the folder, readable by 10001" }}
{{- end }}
{{- if or $trainer.tolerations $trainer.affinity (ne $trainer.gpuResource "nvidia.com/gpu") }}
{{- fail "trainer: with runner.kind kubernetes say where by nodeSelector; tolerations, affinity and gpuResource are not used (nvidia.com/gpu is tolerated and asked for)" }}
{{- end }}
{{- $memory := toString (dig "limits" "memory" "" $trainer.resources) }}
{{- if not (hasSuffix "Gi" $memory) }}
{{- fail "trainer.resources.limits.memory: with runner.kind kubernetes say it in Gi" }}
{{- end }}
namespace: {{ .Release.Namespace }}
image: {{ include "site.trainerImage" . }}
gpus: {{ $trainer.gpus }}
memory_gb: {{ trimSuffix "Gi" $memory }}
jobs_source: {{ include "site.jobsClaim" . }}
mounts:
  - {source: {{ include "site.dataClaim" . }}, target: /data}
  - {source: {{ include "site.modelsClaim" . }}, target: /models}
service_account: {{ include "site.fullname" . }}-trainer
{{- with $trainer.nodeSelector }}
node_selector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $trainer.runtimeClassName }}
runtime: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
