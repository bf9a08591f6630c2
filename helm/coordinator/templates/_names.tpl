{{/* Names, labels and images. */}}

{{- define "coordinator.fullname" -}}
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
{{- define "coordinator.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "coordinator.labels" -}}
{{ include "coordinator.selector" . }}
app.kubernetes.io/part-of: wardround
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An image by digest where there is one, else by tag. */}}
{{- define "coordinator.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "coordinator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "coordinator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the ServiceAccount that is there, or let the chart make one (serviceAccount.create)" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "coordinator.databaseSecret" -}}
{{- if .Values.postgresql.enabled -}}
{{- default (printf "%s-postgresql" (include "coordinator.fullname" .)) .Values.postgresql.existingSecret -}}
{{- else -}}
{{- required "database.existingSecret: name the Secret with the database's password (kubectl create secret generic NAME --from-file=password=FILE)" .Values.database.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "coordinator.databaseUrl" -}}
{{- if .Values.postgresql.enabled -}}
{{- printf "postgresql+pg8000://wardround@%s-postgresql/wardround" (include "coordinator.fullname" .) -}}
{{- else -}}
{{- required "database.url: say postgresql+pg8000://USER@HOST/NAME, or take a test's own by postgresql.enabled" .Values.database.url -}}
{{- end -}}
{{- end -}}

{{- define "coordinator.keysClaim" -}}
{{- default (printf "%s-keys" (include "coordinator.fullname" .)) .Values.keys.volume.existingClaim -}}
{{- end -}}

{{- define "coordinator.blobsClaim" -}}
{{- default (printf "%s-blobs" (include "coordinator.fullname" .)) .Values.blobs.volume.existingClaim -}}
{{- end -}}

{{/* A claim that outlives the release: deleting it is a person's decision. Takes root, name, component and volume. */}}
{{- define "coordinator.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "coordinator.labels" . | nindent 4 }}
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
