{{/* What every pod has. Safety: the restricted Pod Security Standard, field by field. */}}

{{- define "site.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "site.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "site.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The environment of the agent. */}}
{{- define "site.env" -}}
- name: HOME
  value: /tmp
{{- range $name, $value := .Values.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Mounts of the agent. No patient data, and no base model. */}}
{{- define "site.agentMounts" -}}
- name: state
  mountPath: /srv/wardround
- name: jobs
  mountPath: /srv/wardround/jobs
- name: config
  mountPath: /srv/wardround/site.yaml
  subPath: site.yaml
  readOnly: true
- name: policy
  mountPath: /etc/wardround/policy
  readOnly: true
- name: private
  mountPath: /run/wardround
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/* The volumes of a trainer, in the long-lived one and in Jobs. Whatever mounts data mounts it read-only. */}}
{{- define "site.trainerClaim" -}}
persistentVolumeClaim:
  claimName: {{ .claim }}
  readOnly: true
{{- end -}}
