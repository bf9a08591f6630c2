{{/* Names, labels and images. */}}

{{- define "site.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What chooses the pods of a component; never changes from version to version. Takes root and component. */}}
{{- define "site.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "site.labels" -}}
{{ include "site.selector" . }}
app.kubernetes.io/part-of: wardround
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image by digest where there is one, else by tag. */}}
{{- define "site.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "site.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-agent" (include "site.fullname" .)) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount that is there, or let the chart make one (serviceAccount.create)" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "site.stateClaim" -}}
{{- default (printf "%s-state" (include "site.fullname" .)) .Values.state.existingClaim -}}
{{- end -}}

{{- define "site.jobsClaim" -}}
{{- default (printf "%s-jobs" (include "site.fullname" .)) .Values.jobs.existingClaim -}}
{{- end -}}

{{- define "site.dataClaim" -}}
{{- required "data.existingClaim: name the claim with the hospital's data; it is mounted in the trainer only, read-only" .Values.data.existingClaim -}}
{{- end -}}

{{- define "site.modelsClaim" -}}
{{- required "models.existingClaim: name the claim with the base models; it is mounted in the trainer only, read-only" .Values.models.existingClaim -}}
{{- end -}}

{{/* The trainer's image: with CUDA where there are GPUs. */}}
{{- define "site.trainerImage" -}}
{{- $image := .Values.trainer.image -}}
{{- $flavour := ternary "cuda" "cpu" (gt (int .Values.trainer.gpus) 0) -}}
{{- include "site.image" (dict "root" . "image" (dict "repository" $image.repository "digest" $image.digest "tag" (default (printf "%s-%s" .Chart.AppVersion $flavour) $image.tag))) -}}
{{- end -}}

{{/* A claim that outlives the release: deleting it is a person's decision. Takes root, name, component and volume. */}}
{{- define "site.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "site.labels" . | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  accessModes: [{{ .volume.accessMode }}]
  {{- with .volume.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .volume.size }}
{{- end -}}
